"""One tiny data-bin for the whole session, and tiny models built through fairseq's own parser."""

from __future__ import annotations

import copy
import functools
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers, and what they start, share the cores

import hydra.experimental
import pytest
import torch
from forked import fairseq_train
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

LANGS = ("en", "qa", "qb", "qm")
LANG_PAIRS = "en-qa,qa-en,en-qb,qb-en,en-qm,qm-en"
SIZES = {"train": 300, "valid": 21, "test": 20}  # 21: no multiple of fairseq's batch size multiple, 8

_SHAPE = [
    "--encoder-layers",
    "2",
    "--decoder-layers",
    "2",
    "--encoder-embed-dim",
    "16",
    "--decoder-embed-dim",
    "16",
    "--encoder-ffn-embed-dim",
    "48",
    "--decoder-ffn-embed-dim",
    "40",
    "--encoder-attention-heads",
    "2",
    "--decoder-attention-heads",
    "2",
    "--encoder-normalize-before",
    "--decoder-normalize-before",
    "--share-all-embeddings",
    "--dropout",
    "0.1",
]
_COMMON = [
    "--encoder-langtok",
    "src",
    "--decoder-langtok",
    "--max-tokens",
    "500",
    "--cpu",
    "--optimizer",
    "adam",
    "--lr",
    "0.001",
    "--seed",
    "1",
    "--criterion",
    "label_smoothed_cross_entropy",
    "--label-smoothing",
    "0.1",
]


def pytest_configure(config: pytest.Config) -> None:
    """``pytest -n 2`` hands out whole files, whose tests share fixtures, in the order below."""
    if config.getoption("dist", "no") == "load":
        config.option.dist, config.option.loadscopereorder = "loadfile", False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files of slow tests first: one of them at the end would be waited for by all other workers."""

    def is_slow(item: pytest.Item) -> bool:
        module = item.getparent(pytest.Module)
        return module is not None and module.get_closest_marker("slow") is not None

    items.sort(key=is_slow, reverse=True)


def _composed_from_known(compose: Any) -> Any:
    """hydra's ``compose`` of fairseq's overrides, which takes a sixth of a second, a tenth of that after the first.

    The same dataclasses (``model=transformer``) are composed once; values (``model.dropout=0.1``) are put into a copy.
    """
    known: dict[tuple[str, ...], Any] = {}
    parser = OverridesParser.create()

    @functools.cache
    def parsed(line: str) -> tuple[str, Any]:
        override = parser.parse_override(line)
        return override.key_or_group, override.value()

    @functools.wraps(compose)
    def composed(name: str, *, overrides: Sequence[str], strict: bool) -> Any:
        is_value = {line: "." in line.partition("=")[0] for line in overrides}
        classes = (name, *(line for line in overrides if not is_value[line]))
        if classes not in known:
            known[classes] = compose(name, overrides=[*classes[1:]], strict=strict)
        config = copy.deepcopy(known[classes])
        OmegaConf.set_struct(config, True)  # so that hydra applies them: a field that is unknown is an error
        for line in filter(is_value.get, overrides):
            OmegaConf.update(config, *parsed(line))
        OmegaConf.set_struct(config, strict)
        return config

    return composed


hydra.experimental.compose = _composed_from_known(hydra.experimental.compose)  # before fairseq imports it


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a command run in this process sets in the environment (LOGLEVEL) ends with its test."""
    with mock.patch.dict(os.environ):
        yield


class Workshop:
    """Tasks, models, batches and masks on the tiny data-bin."""

    langs = LANGS
    lang_pairs = LANG_PAIRS
    sizes = SIZES

    def __init__(self, data_bin: Path) -> None:
        self.data_bin = data_bin

    def config(self, *flags: str, task: str = "neuron_specialization", arch: str = "") -> Any:
        from fairseq import options
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        from neuron_spec import models, tasks

        assert models and tasks  # registered
        arch = arch or "neuron_spec_transformer_tiny"
        given = [str(self.data_bin), "--task", task, "--arch", arch, "--langs", ",".join(LANGS)]
        given += ["--lang-pairs", LANG_PAIRS, *_SHAPE, *_COMMON, *flags]
        # Most tests look at masks on random weights.
        is_random = "--finetune-from-model" not in flags and {"--neuron-masks", "--weight-masks"} & {*flags}
        given += ["--masks-on-random-weights"] * bool(is_random)
        args = options.parse_args_and_arch(options.get_training_parser(), input_args=given)
        return convert_namespace_to_omegaconf(args)

    def build(self, *flags: str, seed: int = 1, **kinds: str) -> tuple[Any, Any, Any]:
        """Configuration, task and model in eval mode."""
        from fairseq import tasks

        cfg = self.config(*flags, **kinds)
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(seed)
        model = task.build_model(cfg.model)
        with torch.no_grad():  # fairseq starts some biases at zero, which would hide mistakes
            for name, parameter in model.named_parameters():
                if name.endswith(("fc1.bias", "fc2.bias")):
                    parameter.uniform_(-0.3, 0.3)
        return cfg, task, model.eval()

    def fine_tuning(self, **flags: Any) -> str:
        """YAML of fairseq's flags for copies of the tiny model, 3 updates each."""
        shape = {f"{side}-{name}": value for side in ("encoder", "decoder") for name, value in (
            ("layers", 2), ("embed-dim", 16), ("attention-heads", 2), ("ffn-embed-dim", 48 if side == "encoder" else 40),
        )}  # fmt: skip
        values = {
            "arch": "neuron_spec_transformer_tiny", **shape, "criterion": "label_smoothed_cross_entropy",
            "optimizer": "adam", "lr": 0.01, "max-update": 3, "max-tokens": 500, "disable-validation": "true",
            "num-workers": 0, **flags,
        }  # fmt: skip
        return "".join(f"{key}: {value}\n" for key, value in values.items())

    def batches(
        self, task: Any, split: str = "valid", *, max_tokens: int = 200, epoch: int = 1, multiple: int = 8
    ) -> list[dict[str, Any]]:
        if split not in task.datasets:
            task.load_dataset(split, epoch=epoch)
        iterator = task.get_batch_iterator(
            task.dataset(split),
            max_tokens=max_tokens,
            max_positions=(1024, 1024),
            required_batch_size_multiple=multiple,
            epoch=epoch,
        )
        return list(iterator.next_epoch_itr(shuffle=False))

    def masks(self, model: Any, directions: Sequence[str] = (), *, kept: float = 0.6, seed: int = 1) -> Any:
        """Random masks for the directions, a fraction ``kept`` True."""
        from neuron_spec.directions import parse_directions
        from neuron_spec.neurons.masks import NeuronMasks

        generator = torch.Generator().manual_seed(seed)
        named = parse_directions(directions or LANG_PAIRS)
        widths = {key: fc1.out_features for key, fc1 in model.ffn_layers().items()}
        return NeuronMasks(
            named,
            {key: torch.rand(len(named), width, generator=generator) < kept for key, width in widths.items()},
        )

    def trained_by_one_and_by_two_processes(
        self, checkpoint: Path, folder: Path, *flags: object
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Four updates of ``fairseq-train`` on the CPU, by one process with twice the update-freq, and by two."""
        from neuron_spec.backends.fairseq.checkpoints import read_checkpoint

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cfg = self.config()
        shape = [
            f"--{side}-{name}={getattr(cfg.model, f'{side}_{name}'.replace('-', '_'))}"
            for side in ("encoder", "decoder")
            for name in ("layers", "embed-dim", "ffn-embed-dim", "attention-heads")
        ]
        user_dir = Path(__file__).parents[1] / "neuron_spec"
        command = [
            *(self.data_bin, "--user-dir", user_dir),
            *("--arch", "neuron_spec_transformer_tiny", *shape),
            *("--encoder-normalize-before", "--decoder-normalize-before", "--share-all-embeddings"),
            *("--langs", ",".join(self.langs), "--lang-pairs", self.lang_pairs),
            *("--encoder-langtok", "src", "--decoder-langtok", "--finetune-from-model", checkpoint, "--cpu"),
            *("--criterion", "label_smoothed_cross_entropy", "--optimizer", "adam", "--lr", "0.001", "--dropout", "0"),
            *("--max-tokens", "200", "--max-update", "4", "--disable-validation", "--no-epoch-checkpoints"),
            *("--num-workers", "0", "--seed", "1", *flags),
        ]  # fmt: skip
        two = [
            *command, "--update-freq", "1", "--save-dir", folder / "two", "--distributed-world-size", "2",
            "--distributed-no-spawn", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
            "--distributed-init-method", f"tcp://127.0.0.1:{port}",
        ]  # fmt: skip

        fairseq_train([*command, "--update-freq", "2", "--save-dir", folder / "one"], folder / "one.log")
        with ThreadPoolExecutor() as pool:
            ranks = ([*two, "--distributed-rank", rank] for rank in (0, 1))
            list(pool.map(fairseq_train, ranks, (folder / f"rank-{rank}.log" for rank in (0, 1))))
        one, other = (
            read_checkpoint(folder / name / "checkpoint_last.pt")["model"] for name in ("one", "two")
        )
        return one, other

    def save(self, path: Path, cfg: Any, model: Any) -> Path:
        """A checkpoint of the shape that fairseq's trainer writes."""
        state = {
            "args": None,
            "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
            "model": model.state_dict(),
            "criterion": None,
            "optimizer_history": [
                {
                    "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                    "optimizer_name": "FairseqAdam",
                    "lr_scheduler_state": {},
                    "num_updates": 0,
                }
            ],
            "task_state": {},
            "extra_state": {"train_iterator": {"epoch": 1}},
            "last_optimizer_state": None,
        }
        torch.save(state, path)
        return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from neuron_spec.corpora import build, toy

    output = tmp_path_factory.mktemp("toy")
    corpus = toy.read(langs=LANGS[1:], sizes=SIZES, seed=1)
    build.build(corpus, output, vocab_size=300, parameters={"corpus": "toy"})
    return output / "data-bin"


@pytest.fixture(scope="session")
def workshop(data_bin: Path) -> Workshop:
    return Workshop(data_bin)


@pytest.fixture(scope="session")
def checkpoint(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint of random weights."""
    cfg, _, model = workshop.build()
    return workshop.save(tmp_path_factory.mktemp("dense") / "dense.pt", cfg, model)
