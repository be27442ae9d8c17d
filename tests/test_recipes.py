"""The recipes of the paper's corpora: their commands at full size, SLURM jobs, shards, processes, and tiny runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from neuron_spec.backends.fairseq.checkpoints import carried_masks, read_checkpoint, task_args
from neuron_spec.backends.fairseq.commands import unknown_training_flags
from neuron_spec.backends.fairseq.config import read_flags
from neuron_spec.backends.fairseq.data_bin import check_data_bin, data_sha256, folder_with, shards_of
from neuron_spec.cli.main import main
from neuron_spec.corpora.binarize import binarize
from neuron_spec.directions import parse_directions
from neuron_spec.errors import ArtifactError
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.masks import NeuronMasks
from neuron_spec.scoring.evaluation import read_evaluation

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
CORPORA = {
    "iwslt14": ["--archive", "/text/2014-01.tgz"],
    "ec30": ["--data-bin", "/text/ec30"],
}
TOKENS_PER_UPDATE = {  # method: 4 GPUs x max-tokens x update-freq
    ("iwslt14", "pretrain"): 4 * 16384 * 4,
    ("iwslt14", "continue"): 4 * 16384 * 4,
    ("ec30", "pretrain"): 4 * 10240 * 21,
    ("ec30", "continue"): 4 * 7680 * 21,
}
OUTSIDE = {  # of torchrun and SLURM, in case the tests run under them
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("SLURM_", "TORCHELASTIC_")) and name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")
}
ENVIRONMENT = {
    **OUTSIDE,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
    "OMP_NUM_THREADS": "1",
}


def run(
    *command: object, status: int = 0, env: dict[str, str] | None = None, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        env={**ENVIRONMENT, **(env or {})},
        capture_output=True,
        text=True,
        **kwargs,
    )
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def recipe(corpus: str, *arguments: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return run(SCRIPTS / corpus / "run.sh", *arguments, **kwargs)


def commands(corpus: str, *arguments: object) -> list[str]:
    return recipe(corpus, *CORPORA[corpus], "--dry-run", *arguments).stdout.splitlines()


def programs(folder: Path, **bodies: str) -> dict[str, str]:
    """An environment in which these programs come before any others of their names."""
    folder.mkdir()
    for name, body in bodies.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}"}


# ------------------------------------------------------------------ the commands at full size


def value_of(words: list[str], flag: str) -> str:
    return words[len(words) - words[::-1].index(flag)]  # the last counts


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("corpus", CORPORA)
def test_fairseq_knows_the_training_commands_and_their_updates_are_the_published_size(
    corpus: str, gpus: int
) -> None:
    trainings = [line.split() for line in commands(corpus, "--gpus", gpus) if "20_" in line or "50_" in line]
    assert len(trainings) == 5
    for words in trainings:
        config = next(word for word in words if word.endswith(".yaml"))
        own = words[words.index(config) + 1 :]
        flags = [*read_flags(ROOT / config, gpus), *own]
        assert unknown_training_flags(flags) == []
        assert value_of(own, "--distributed-world-size") == str(gpus)
        tokens = gpus * int(value_of(flags, "--max-tokens")) * int(value_of(flags, "--update-freq"))
        assert tokens == TOKENS_PER_UPDATE[corpus, Path(config).stem]


def test_ec30_is_specialized_as_the_official_code_does_it() -> None:
    flags = read_flags(ROOT / "configs/ec30/continue.yaml", 4)
    assert (value_of(flags, "--max-tokens"), value_of(flags, "--update-freq")) == ("7680", "21")


SHAPE = [
    f"{side}_{name}"
    for side in ("encoder", "decoder")
    for name in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads", "normalize_before")
] + ["share_decoder_input_output_embed", "share_all_embeddings", "activation_fn"]
TASK = ["max_source_positions", "max_target_positions", "encoder_langtok", "decoder_langtok"]


@pytest.mark.parametrize("config", ["iwslt14", "ec30", "iwslt14/smoke", "ec30/smoke"])
def test_both_stages_train_the_same_model(config: str) -> None:
    from fairseq import options

    parsed = []
    for stage, task in (
        ("pretrain", "translation_multi_simple_epoch"),
        ("continue", "neuron_specialization"),
    ):
        flags = read_flags(ROOT / "configs" / config / f"{stage}.yaml", 1)
        parser = options.get_training_parser()
        parsed.append(options.parse_args_and_arch(parser, input_args=["data", "--task", task, *flags]))
    dense, continued = ({name: vars(args).get(name) for name in SHAPE + TASK} for args in parsed)
    assert dense == continued
    if config == "ec30":
        assert [dense[f"encoder_{name}"] for name in ("layers", "embed_dim", "ffn_embed_dim")] == [
            6,
            1024,
            4096,
        ]
        assert dense["encoder_normalize_before"]
        assert dense["share_decoder_input_output_embed"]
    if config == "iwslt14":
        assert [dense[f"encoder_{name}"] for name in ("layers", "embed_dim", "ffn_embed_dim")] == [
            6,
            512,
            1024,
        ]


def test_every_value_of_a_full_size_config_has_its_source() -> None:
    for corpus in CORPORA:
        for stage in ("pretrain", "continue"):
            for line in (ROOT / "configs" / corpus / f"{stage}.yaml").read_text().splitlines():
                sourced = re.search(r"# (\[LaSS\]|\[EC40\]|\[official code\]|ours)", line)
                assert line.startswith("#") or sourced, line


@pytest.mark.parametrize("corpus", CORPORA)
def test_all_systems_of_a_seed_start_from_its_dense_model_and_are_trained_alike(corpus: str) -> None:
    found = commands(corpus, "--gpus", 4, "--seeds", "4,7", "--run", "R")
    for seed, other in ((4, 7), (7, 4)):
        own = [line for line in found if f"R/seed-{seed}/" in line and "compare" not in line]
        assert not any(f"seed-{other}" in line for line in own)
        dense = f"R/corpus/data-bin R/seed-{seed}/dense/checkpoint_best.pt"
        continued = [line for line in own if "50_specialize" in line]
        assert all(f" {dense} " in line for line in continued)
        assert len({line.partition("continue.yaml")[2] for line in continued}) == 1
        assert sum("60_evaluate" in line for line in own) == 5
    assert sum("neuron-spec compare" in line for line in found) == 3
    published = {"iwslt14": "", "ec30": " --published results/published/ec30.csv"}
    assert found[-1] == f"scripts/70_report.sh R{published[corpus]}"


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_mean_of_the_best_checkpoints_is_evaluated_where_it_is_asked_for(corpus: str) -> None:
    plain = commands(corpus, "--gpus", 4, "--run", "R")
    assert not any("average" in line or "--keep-best-checkpoints" in line for line in plain)
    found = commands(corpus, "--gpus", 4, "--run", "R", "--average", 5)
    trained = [line for line in found if "20_pretrain" in line or "50_specialize" in line]
    assert all("--keep-best-checkpoints 5" in line for line in trained)
    averages = {line for line in found if "neuron-spec checkpoint average" in line}
    for at, line in enumerate(found):
        if "60_evaluate" in line:
            (path,) = re.findall(r"R/seed-\d+/[a-z-]+/average-5\.pt", line)
            folder = path.rpartition("/")[0]
            assert found[at - 1] == (
                f"neuron-spec checkpoint average --inputs {folder} --num-best-checkpoints 5 --output {path}"
            )
    assert len(averages) == len([line for line in found if "60_evaluate" in line]) == 5
    assert "expected a whole number" in recipe(corpus, *CORPORA[corpus], "--average", 1, status=2).stderr


def test_a_downloaded_data_bin_is_scored_against_its_own_targets() -> None:
    evaluations = [line for line in commands("ec30", "--gpus", 4) if "60_evaluate" in line]
    assert not any("lenpen" in line for line in evaluations)  # fixed, as in the literature
    assert all("--references data-bin --official-scoring" in line for line in evaluations)
    plain = ["--plain", "/p", "--valid", "/v", "--test", "/t"]
    lines = recipe("ec30", *plain, "--gpus", 4, "--dry-run").stdout.splitlines()
    assert lines[0] == f"scripts/10_data.sh ec30 runs/ec30/corpus {' '.join(plain)}"
    assert not any("--references" in line for line in lines)


def test_text_is_named_from_where_the_user_stands(tmp_path: Path) -> None:
    done = recipe("iwslt14", "--archive", "a.tgz", "--gpus", 1, "--dry-run", cwd=tmp_path)
    assert f"--archive {tmp_path}/a.tgz" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("corpus", CORPORA)
def test_help_shows_every_option(corpus: str) -> None:
    text = recipe(corpus, "--help").stdout
    (taken,) = re.findall(r'take_options "([a-z -]+)" "\$@"', (SCRIPTS / "recipe.sh").read_text())
    options = {*taken.split(), "--run", "--smoke", "--dry-run", *CORPORA[corpus][::2]}
    assert len(options) > 8
    assert {option for option in options if option not in text} == set()


@pytest.mark.parametrize(
    ("corpus", "arguments", "message"),
    [
        ("iwslt14", "--archiv a.tgz", "unknown option: --archiv"),
        ("iwslt14", "--plain /p", "unknown option: --plain"),
        ("iwslt14", "--gpus 4", "where is the text? Give --archive"),
        ("iwslt14", "--archive", "--archive needs a value"),
        ("iwslt14", "--archive a --gpus 0", "--gpus: got '0'"),
        ("iwslt14", "--archive a --gpus 4096", "got 4096, but torch sees"),
        ("iwslt14", "--archive a --gpus 4 --nodes 2", "--nodes is for SLURM jobs"),
        ("iwslt14", "--archive a --gpus 4 --submit", "--submit sends SLURM jobs"),
        ("iwslt14", "--archive a --gpus 4 --slurm a;b", "expected a partition's name"),
        ("iwslt14", "--archive a --gpus 4 --slurm p --stop-after 5", "--stop-after is not for SLURM jobs"),
        ("iwslt14", "--smoke --archive a", "--smoke makes its own text"),
        ("ec30", "--smoke --gpus 2", "--smoke runs here"),
        ("ec30", "--data-bin d --seeds 1,1", "1 is named twice"),
        ("ec30", "--data-bin d --stop-after soon", "got 'soon'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    corpus: str, arguments: str, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = recipe(corpus, "--run", folder, *arguments.split(), status=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert not folder.exists()


@pytest.mark.parametrize("name", ["a b", "a\n#SBATCH --wrap=x", "a%j", "a;b", "$(touch ran)", "a\tb", 'a"b'])
def test_a_folder_that_would_be_more_than_a_path_in_a_job_is_refused(name: str, tmp_path: Path) -> None:
    arguments = [*CORPORA["ec30"], "--run", tmp_path / name, "--slurm", "p", "--gpus", 4]
    done = recipe("ec30", *arguments, status=2)
    assert "--run: got" in done.stderr and "expected for SLURM jobs a path" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert [*tmp_path.iterdir()] == []


def test_too_little_disk_is_said_before_hours_are_spent(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*CORPORA["ec30"], "--run", folder, "--slurm", "p", "--gpus", 4]
    for free, status in ((20, 2), (2000, 0)):
        env = programs(tmp_path / str(free), df=f"printf 'Avail\\n{free}\\n'")
        done = recipe("ec30", *arguments, env=env, status=status)
        assert f"free: {free} GB" in done.stderr
        assert ("too little disk" in done.stderr) == (status == 2)
        assert folder.exists() == (status == 0)
    # A seed more needs more; it is only an estimate.
    needs = [
        int(
            re.findall(r"up to (\d+) GB", recipe("ec30", *arguments, "--dry-run", "--seeds", seeds).stderr)[0]
        )
        for seeds in ("1", "1,2")
    ]
    assert needs[1] > 1.5 * needs[0] > 0


# ------------------------------------------------------------------ SLURM


def jobs(corpus: str, folder: Path, *arguments: object) -> dict[str, str]:
    env = programs(folder / "bin", df="printf 'Avail\\n9999\\n'")
    recipe(corpus, *CORPORA[corpus], "--run", folder / "run", "--slurm", "long", *arguments, env=env)
    written = {path.stem: path.read_text() for path in (folder / "run/slurm").glob("*.sbatch")}
    for path in (folder / "run/slurm").iterdir():
        run("bash", "-n", path)
    return written


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_jobs_hold_the_commands_of_a_run_on_one_machine(corpus: str, tmp_path: Path) -> None:
    written = jobs(corpus, tmp_path, "--gpus", 4, "--seeds", "3")
    assert all("--partition=long " in text for text in written.values())
    plain = commands(corpus, "--gpus", 4, "--seeds", "3", "--run", tmp_path / "run")
    inside = [line for text in written.values() for line in text.splitlines()]
    assert len(plain) > 10
    assert [line for line in plain if line not in inside] == []
    for name, text in written.items():
        trains = name.startswith(("pretrain", "continue"))
        assert ("--gres=gpu:4" in text) == trains
        assert ("--gres=gpu:1" in text) == name.startswith(("profile", "evaluate"))


def test_several_nodes_train_through_torchrun_and_only_train(tmp_path: Path) -> None:
    written = jobs("ec30", tmp_path, "--gpus", 4, "--nodes", 2)
    for name, text in written.items():
        trains = name.startswith(("pretrain", "continue"))
        assert ("#SBATCH --nodes=2 " in text) == trains
        assert ("torchrun" in text) == trains
        if trains:
            assert "--distributed-world-size 8" in text
            assert text.count(" --no-python scripts/") == 1


def test_jobs_are_submitted_after_those_they_need(tmp_path: Path) -> None:
    written = jobs("iwslt14", tmp_path, "--gpus", 2, "--seeds", "1,2")
    log = tmp_path / "submitted"
    env = programs(tmp_path / "cluster", sbatch=f'echo "$@" >> {log}; echo "$(wc -l < {log});cluster"')
    run("bash", tmp_path / "run/slurm/submit.sh", env=env)
    names: list[str] = []
    needs: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        words = shlex.split(line)
        name = Path(words[-1]).stem
        after = next((word.split("=")[1] for word in words if word.startswith("--dependency")), "afterok")
        needs[name] = {names[int(number) - 1] for number in after.split(":")[1:]}
        names.append(name)
    assert set(names) == set(written)
    assert needs["corpus"] == set()
    assert needs["pretrain-2"] == {"corpus"}
    assert needs["profile-2"] == {"pretrain-2"}
    assert needs["continue-2-specialized"] == {"profile-2"}
    assert needs["evaluate-2-matched-random"] == {"continue-2-matched-random"}
    assert needs["compare"] == {name for name in names if name.startswith("evaluate")}
    assert needs["report"] == {"compare", "analyze-1", "analyze-2"}


# ------------------------------------------------------------------ once.sh


def test_words_after_a_second_mark_are_not_remembered(tmp_path: Path) -> None:
    log, mark = tmp_path / "log", tmp_path / "mark"
    command = ["bash", "-c", f'echo "$@" >> {log}', "bash"]
    for words in (["a", "--", "rank", "0"], ["a", "--", "rank", "1"], ["a"], ["b", "--"]):
        run(SCRIPTS / "once.sh", mark, "--", *command, *words)
    assert log.read_text().splitlines() == ["a rank 0", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "mark"]


def test_a_training_that_made_no_update_is_not_called_another(tmp_path: Path) -> None:
    mark, checkpoint = tmp_path / "complete.txt", tmp_path / "checkpoint_last.pt"
    train = ["bash", "-c", f"[[ -e {checkpoint} && $1 != more ]] || touch {checkpoint}", "bash"]
    for word in ("first", "more"):
        run(SCRIPTS / "once.sh", mark, "--", *train, word)
        assert mark.read_text().split()[-1] == word
    refused = run(SCRIPTS / "once.sh", mark, "--", *train, "other", status=2)
    assert "another training is complete here" in refused.stderr
    assert "< more\n> other\n" in refused.stderr
    assert mark.read_text().split()[-1] == "more"


# ------------------------------------------------------------------ shards


@pytest.fixture(scope="module")
def sharded(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus in two shards: train in halves, valid in both, test in the first."""
    corpus = tmp_path_factory.mktemp("sharded")
    shutil.copytree(data_bin.parent / "raw", corpus / "raw")
    shutil.copy(data_bin.parent / "corpus.json", corpus)
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(data_bin.parent / "spm/sentencepiece.model")
    )
    for number in range(2):
        raw, shard = corpus / f"half{number}", corpus / "data-bin" / f"shard{number}"
        raw.mkdir()
        shard.mkdir(parents=True)
        for path in (*data_bin.glob("dict.*"), *data_bin.glob("valid.*")):
            shutil.copy(path, shard)
        for path in (corpus / "raw").glob("train.*"):
            lines = path.read_text().splitlines(keepends=True)
            (raw / path.name).write_text("".join(lines[number::2]))
        binarize(raw, [path.name for path in raw.iterdir()], processor, shard)
    for path in data_bin.glob("test.*"):
        shutil.copy(path, corpus / "data-bin/shard0")
    for name in ("langs.txt", "lang_pairs.txt"):
        shutil.copy(data_bin / name, corpus / "data-bin")
    return corpus / "data-bin"


DIRECTIONS = parse_directions("en-qa,qa-en,qb-en")
LANGS = ["en", "qa", "qb", "qm"]


def test_a_split_is_found_in_its_shard(sharded: Path, data_bin: Path, tmp_path: Path) -> None:
    assert [shard.name for shard in shards_of(sharded)] == ["shard0", "shard1"]
    assert shards_of(data_bin) == []
    copy = Path(shutil.copytree(sharded, tmp_path / "data-bin"))
    assert folder_with(copy, "test") == copy / "shard0"
    for path in (copy / "shard0").glob("test.*"):
        path.rename(copy / "shard1" / path.name)
    assert folder_with(copy, "test") == copy / "shard1"
    assert folder_with(copy, "valid") == copy / "shard0"
    check_data_bin(copy, LANGS, "test", DIRECTIONS)
    with pytest.raises(ArtifactError, match="no shard of the data-bin has a dev set"):
        check_data_bin(copy, LANGS, "dev", DIRECTIONS)
    (copy / "shard1/dict.qb.txt").unlink()
    check_data_bin(copy, LANGS, "valid", DIRECTIONS)
    with pytest.raises(ArtifactError, match="no dictionary of qb"):
        check_data_bin(copy, LANGS, "test", DIRECTIONS)


def test_shards_are_taken_in_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / f"shard{number}").mkdir()
    expected = ":".join(f"{tmp_path}/shard{number}" for number in range(11))
    for folder, path in ((tmp_path, expected), (tmp_path / "shard0", f"{tmp_path}/shard0")):
        assert run("bash", "-c", f'. {SCRIPTS}/training.sh; data_path "{folder}"').stdout.strip() == path
    assert [str(shard) for shard in shards_of(tmp_path)] == expected.split(":")


def test_how_many_train_together(tmp_path: Path) -> None:
    def count(words: str, **env: str) -> str:
        return run("bash", "-c", f". {SCRIPTS}/training.sh; gpus {words}", env=env).stdout.strip()

    assert count("--seed 1 --distributed-world-size 3 --cpu") == "3"
    assert count("--distributed-world-size 3", WORLD_SIZE="8", RANK="5", LOCAL_RANK="1") == "8"
    assert count("--cpu", SLURM_NNODES="1") == "all"
    done = run("bash", "-c", f". {SCRIPTS}/training.sh; gpus", env={"SLURM_NNODES": "2"}, status=2)
    assert "torchrun" in done.stderr


def test_a_sharded_validation_set_is_profiled_as_a_plain_one(
    sharded: Path, data_bin: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert data_sha256(sharded, "valid", DIRECTIONS) == data_sha256(data_bin, "valid", DIRECTIONS)
    for folder, name in ((sharded, "shards"), (data_bin, "plain")):
        output = tmp_path / f"{name}.safetensors"
        assert (
            main(["profile", str(folder), "--path", str(checkpoint), "--output", str(output), "--cpu"]) == 0
        )
    shards, plain = (ActivationCounts.load(tmp_path / f"{name}.safetensors") for name in ("shards", "plain"))
    assert sum(int(tokens.sum()) for tokens in shards.tokens.values()) > 0
    for layer, counts in plain.counts.items():
        assert torch.equal(shards.counts[layer], counts)


def test_a_sharded_test_set_is_evaluated_as_a_plain_one(
    sharded: Path, data_bin: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for folder, name in ((sharded, "shards"), (data_bin, "plain")):
        words = ["--output", str(tmp_path / name), "--lang-pairs", "en-qa", "--beam", "1", "--cpu"]
        longest = ["--", "--max-len-a", "0", "--max-len-b", "4"]
        assert main(["evaluate", str(folder), "--path", str(checkpoint), *words, *longest]) == 0
    shards, plain = (read_evaluation(tmp_path / name) for name in ("shards", "plain"))
    assert shards.scores == plain.scores
    text = "hypotheses/en-qa.txt"
    assert (tmp_path / "shards" / text).read_text() == (tmp_path / "plain" / text).read_text()


# ------------------------------------------------------------------ processes


def test_two_processes_of_torchrun_specialize_on_shards_as_one_does(
    sharded: Path, workshop: Any, checkpoint: Path, tmp_path: Path
) -> None:
    """Through the stage's own script: the same updates, from half the batches each, over a change of shards."""
    _, _, model = workshop.build()
    workshop.masks(model).save(tmp_path / "masks.safetensors")
    config = tmp_path / "config.yaml"
    smoke = (ROOT / "configs/ec30/smoke/continue.yaml").read_text()
    shape = {"embed-dim": 16, "encoder-ffn-embed-dim": 48, "decoder-ffn-embed-dim": 40, "dropout": 0}
    for name, size in shape.items():
        smoke = re.sub(rf"({name}): .*", rf"\1: {size}", smoke)
    smoke = re.sub(r"tokens-per-update: .*", "tokens-per-update: 8000", smoke)
    config.write_text(smoke.replace("share-decoder-input-output-embed", "share-all-embeddings"))
    stage = [SCRIPTS / "50_specialize.sh", sharded, checkpoint, tmp_path / "masks.safetensors"]
    flags = [
        "--cpu",
        "--max-update",
        4,
        "--disable-validation",
        "--log-format",
        "simple",
        "--log-interval",
        1,
    ]
    flags += ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
    # Attention's key biases have no gradient but rounding, which Adam would make as large as any.
    flags += ["--adam-eps", 1e-3]
    one = run(*stage, tmp_path / "one", config, *flags)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["torchrun", "--nnodes", 1, "--nproc-per-node", 2, "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--no-python"]
    run(*torchrun, *stage, tmp_path / "two", config, *flags)
    log = one.stdout + one.stderr
    assert "shard1" in log
    marks = [(tmp_path / name / "complete.txt").read_text() for name in ("one", "two")]
    assert "--update-freq 4 " in marks[0]
    assert "--update-freq 2 " in marks[1]
    assert not any("--distributed-rank" in mark for mark in marks)
    dense, single, double = (
        read_checkpoint(path)["model"]
        for path in (checkpoint, *(tmp_path / name / "checkpoint_last.pt" for name in ("one", "two")))
    )
    for key, trained in single.items():
        torch.testing.assert_close(double[key], trained, atol=1e-6, rtol=1e-5)
        assert not key.endswith("fc1.weight") or not torch.equal(dense[key], trained)
    # Again: nothing is trained anew.
    assert "complete already" in run(*stage, tmp_path / "one", config, *flags).stderr


# ------------------------------------------------------------------ tiny runs, end to end


@pytest.mark.experiment
@pytest.mark.parametrize("corpus", CORPORA)
def test_a_tiny_run_from_text_to_comparison(corpus: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe(corpus, "--smoke", "--run", folder)
    (seed,) = folder.glob("seed-*")
    systems = {
        path.parent.name: read_evaluation(path.parent) for path in seed.glob("evaluation/*/scores.json")
    }
    assert set(systems) == {
        "dense",
        "dense-continuation",
        "specialized",
        "matched-random",
        "other-direction",
    }
    directions = len((folder / "corpus/data-bin/lang_pairs.txt").read_text().split(","))
    assert {len(evaluation.scores) for evaluation in systems.values()} == {directions}
    assert directions == {"iwslt14": 16, "ec30": 60}[corpus]
    assert len(shards_of(folder / "corpus/data-bin")) == {"iwslt14": 0, "ec30": 5}[corpus]
    assert len(list(folder.glob("comparison-*/against-*/comparison.md"))) == 3
    assert (folder / f"analysis/{seed.name}/analysis.md").is_file()
    for system in systems:
        assert (seed / system / "config.yaml").is_file()


# ------------------------------------------------------------------ a language more

OF_A_MODEL = ["--path", "/m/specialized.pt", "--masks", "/m/masks.safetensors", "--corpus", "/m/corpus"]


def test_a_language_more_says_each_command_and_what_it_lacks() -> None:
    def new_language(*arguments: object, **kwargs: Any) -> Any:
        return run(SCRIPTS / "new_language.sh", *arguments, **kwargs)

    given = [*OF_A_MODEL, "--lang", "xx", "--train", "/t/train", "--run", "R", "--dry-run"]
    lines = new_language(*given).stdout.splitlines()
    order = [
        "10_data",
        "add-language",
        "30_profile",
        "masks add",
        "mkdir",
        "find",
        "specialize",
        "60_",
        "60_",
    ]
    order += ["60_", "compare"]
    assert [word in line for word, line in zip(order, lines, strict=True)] == [True] * len(order)
    assert "--train /t/train --sentencepiece /m/corpus/spm/sentencepiece.model" in lines[0]
    assert lines[1].split()[3] == "xx" and "--missing-direction dense" in lines[2]
    assert "--max-update 300" in lines[6] and "--config" not in lines[6]
    with_config = new_language(*given, "--config", "c.yaml", "--updates", "9", cwd=ROOT / "docs").stdout
    assert f"--config {ROOT}/docs/c.yaml" in with_config and "--max-update 9" in with_config
    for name in ("path", "masks", "corpus", "lang"):
        at = given.index(f"--{name}")
        assert f"--{name} is missing" in new_language(*given[:at], *given[at + 2 :], status=2).stderr
    assert "Give --train" in new_language(*OF_A_MODEL, "--lang", "xx", "--dry-run", status=2).stderr
    assert "--updates" in new_language(*given, "--updates", "no", status=2).stderr
    assert "its own model" in new_language("--smoke", "--lang", "xx", "--dry-run", status=2).stderr


@pytest.mark.experiment
def test_a_language_more_end_to_end(tmp_path: Path) -> None:
    def new_language() -> str:
        return run(SCRIPTS / "new_language.sh", "--smoke", "--run", tmp_path).stderr

    new_language()
    old, wider = (NeuronMasks.load(tmp_path / f"{name}masks.safetensors") for name in ("", "wider-"))
    assert old.names == ["en-qa", "qa-en", "en-qm", "qm-en"] and not wider.differing(old)
    assert wider.names == [*old.names, "en-qb", "qb-en"]
    state = read_checkpoint(tmp_path / "continued" / "checkpoint_last.pt")
    carried = carried_masks(state, task_args(state).langs)
    assert carried is not None and not wider.differing(carried)
    new = read_evaluation(tmp_path / "evaluation/new")
    assert [str(score.direction) for score in new.scores] == ["en-qb", "qb-en"]
    assert (tmp_path / "comparison" / "comparison.md").is_file()
    assert new_language().count("complete already") >= 9
