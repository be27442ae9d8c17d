"""Commands in forks of one process that has imported everything, so that a kill and a restart take a second, not ten.

Reads a JSON object a line: ``words`` of a command, ``log`` for what it says, ``fault``, ``root`` and ``events`` of
`sitecustomize.arm`, ``limit`` of a file's size in bytes, ``environment``; or a list of such objects, which run together.
Answers with a list of exit codes, negative where a signal killed. Three faults more: ``absent`` (killed at once),
``lost@3`` (killed when it adds up with others for the third time), and ``clock@250`` (killed after so many milliseconds).
"""

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import sys
import traceback

from sitecustomize import arm

import neuron_spec.cli
from neuron_spec.artifacts import commit
from neuron_spec.cli import main
from neuron_spec.studies import STUDIES

# What commands import when they need it, and what that imports when it is used.
LAZY = (
    *("fairseq_cli.train", "fairseq_cli.validate", "fairseq_cli.generate", "fairseq.data.data_utils_fast"),
    *("torch._dynamo", "torch.utils.serialization", "safetensors.torch", "hydra._internal.core_plugins"),
    *("omegaconf._impl", "langcodes.language_distance", "scipy.cluster.hierarchy", "matplotlib.pyplot"),
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.style"),
    *(
        "sacrebleu.tokenizers.tokenizer_13a",
        "PIL.PpmImagePlugin",
        "PIL.JpegImagePlugin",
        "PIL.GifImagePlugin",
    ),
)


def run(words):
    program, sys.argv = words[0], words
    if program == "neuron-spec":
        return main.main(words[1:])
    assert program == "fairseq-train"
    return importlib.import_module("fairseq_cli.train").cli_main()


def child(asked):
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if limit := asked.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        if asked.get("torn"):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # killed in the middle of a write
    os.environ.update(asked.get("environment", {}))
    kind, _, number = (asked.get("fault") or "none").partition("@")
    if kind == "absent":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "clock":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, int(number) / 1000)
    if kind == "lost":
        lose_at(int(number))
    arm(kind, int(number or 0), asked["root"], asked["events"])
    try:
        try:
            code = run(asked["words"])
        except SystemExit:
            raise
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 130 if sys.exc_info()[0] is KeyboardInterrupt else 1
    except SystemExit as ended:
        code = ended.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def lose_at(number):
    import torch.distributed

    add_up, calls = torch.distributed.all_reduce, iter(range(1, 10**6))

    def all_reduce(*arguments, **options):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return add_up(*arguments, **options)

    torch.distributed.all_reduce = all_reduce


def serve():
    folder = os.path.dirname(neuron_spec.cli.__file__)
    for module in pkgutil.iter_modules([folder]):
        importlib.import_module(f"neuron_spec.cli.{module.name}")
    for name in (
        "tasks",
        "models",
        "report.report",
        "backends.fairseq.exporting",
        "scoring.figures",
        "corpora.toy",
    ):
        importlib.import_module(f"neuron_spec.{name}")
    for study in STUDIES:
        for of in (study.command_module, study.page_module):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(study.module(of))
    for name in LAZY:
        importlib.import_module(name)
    commit()  # signed into artefacts, and the same for all, whatever happens to the checkout meanwhile
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        processes = [start(each) for each in (asked if isinstance(asked, list) else [asked])]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
        print(json.dumps(codes), file=answers, flush=True)


def start(asked):
    if pid := os.fork():
        return pid
    try:
        child(asked)
    except BaseException:
        traceback.print_exc()
    os._exit(99)


if __name__ == "__main__":
    serve()
