"""The commands of docs/own-text.md as they stand, from text and from a foreign data-bin with a stock checkpoint to a report."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_spec.artifacts import read_json
from neuron_spec.backends.fairseq.checkpoints import is_specialized, read_checkpoint
from neuron_spec.corpora import toy
from neuron_spec.corpora.build import TRAIN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NAMES = {"qa": "deu_Latn", "qb": "nld_Latn", "qm": "pt_BR"}
LANGS = ["en", *NAMES.values()]
PAIRS = ("en-deu_Latn", "en-nld_Latn", "en-pt_BR", "deu_Latn-pt_BR")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
    "OMP_WAIT_POLICY": "PASSIVE",
}
# What the toy text and the time of a test need; all else is as the page has it.
SMALL = {
    "configs/quickstart/": "configs/smoke/",
    "--max-update 300": "--max-update 15 --warmup-updates 5 --disable-validation",
    "--warmup-updates 50 --max-tokens 1000 --update-freq 12": "--warmup-updates 5 --max-tokens 750 --update-freq 2",
    "--vocab-size 6000": "--vocab-size 300 --valid-size 30 --test-size 6",
    "pretrain.yaml": "pretrain.yaml --max-update 40 --total-num-update 40 --disable-validation",
}


def commands(sequence: str) -> list[str]:
    """Those of all the blocks on the page that are marked as of a sequence."""
    page = (ROOT / "docs" / "own-text.md").read_text(encoding="utf-8")
    mark = rf"<!-- run by tests/test_own_text_to_report.py: {sequence} -->\n```bash\n(.*?)```"
    return "".join(re.findall(mark, page, re.DOTALL)).replace("\\\n", "").splitlines()


def run(command: object, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", str(command)], cwd=folder, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
    return done.stdout


def small(command: str) -> str:
    for whole, part in SMALL.items():
        command = command.replace(whole, part)
    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: text in four pairs, one without English, and the project's scripts."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "text").mkdir()
    by_lang = toy.read(langs=list(NAMES), sizes={"train": 900, "valid": 1, "test": 1}, seed=1).pairs[TRAIN]
    by_english = {english: {} for _, english in by_lang["qa"]}
    for lang, lines in by_lang.items():
        for text, english in lines:
            by_english.setdefault(english, {"en": english})["en"] = english
            by_english[english][NAMES[lang]] = text
    for pair in PAIRS:
        codes = pair.split("-")
        lines = [tuple(of[code] for code in codes) for of in by_english.values() if {*codes} <= of.keys()]
        assert len(lines) > 500
        if pair == "en-pt_BR":
            tsv = "".join("\t".join(line) + "\n" for line in lines)
            (folder / "text" / f"train.{pair}.tsv.gz").write_bytes(gzip.compress(tsv.encode()))
        else:
            for side, code in enumerate(codes):
                (folder / "text" / f"train.{pair}.{code}").write_text(
                    "".join(f"{line[side]}\n" for line in lines)
                )
    return folder


@pytest.fixture(scope="module")
def own(folder: Path) -> Path:
    sequence = commands("text")
    assert len(sequence) == 8
    for command in sequence:
        run(small(command), folder)
    return folder / "runs" / "own"


def test_text_becomes_a_report(own):
    card = read_json(own / "corpus" / "corpus.json", "card")
    assert {*card["langs"]} == {*LANGS} and {*card["pairs"]["train"]} == {*PAIRS}
    assert is_specialized(read_checkpoint(own / "specialized" / "checkpoint_last.pt"))
    report = (own / "report.md").read_text(encoding="utf-8")
    assert "8 directions of English, German (deu_Latn), Portuguese (pt_BR), Dutch (nld_Latn); " in report
    rows = [" ".join(line.split()) for line in report.splitlines()]
    assert any(row.startswith("| deu_Latn-pt_BR | Germanic, Romance |") for row in rows)
    for part in (
        "**specialized against dense-continuation, BLEU:**",
        "## The corpus",
        "figures/overlap.png",
        "off-target",
    ):
        assert part in report, part
    assert (own / "report.html").is_file()
    scores = read_json(own / "evaluation" / "specialized" / "scores.json", "scores")
    assert {*scores["directions"]} == {*card["lang_pairs"]}
    assert all(of["off_target_fraction"] is not None for of in scores["directions"].values())
    families = {row["name"] for row in scores["summary"] if row["kind"] == "family"}
    assert families == {"Germanic", "Romance"}, "of any code"


def test_the_model_comes_out(own, folder):
    by_checkpoint, exported, by_export = [run(command, folder).splitlines() for command in commands("out")]
    folders = {path.name for path in (own / "exported").iterdir()}
    assert folders == {*read_json(own / "corpus" / "corpus.json", "card")["lang_pairs"]}
    assert exported and by_checkpoint[-1] == by_export[-1], "the same translation"


@pytest.fixture(scope="module")
def theirs(own: Path, folder: Path) -> Path:
    """The other sequence, on a data-bin of fairseq's own making and a dense model that plain fairseq trained."""
    data_bin, raw = folder / "theirs", own / "corpus" / "raw"
    binarized = own / "corpus" / "data-bin"
    pieces = folder / "pieces"
    pieces.mkdir()
    from neuron_spec.corpora.build import load_pieces

    processor = load_pieces(own / "corpus" / "spm" / "sentencepiece.model")
    for file in raw.iterdir():
        lines = processor.encode(file.read_text(encoding="utf-8").splitlines(), out_type=str)
        (pieces / file.name).write_text("".join(f"{' '.join(line)}\n" for line in lines), encoding="utf-8")
    for pair in PAIRS:
        source, target = pair.split("-")
        sets = " ".join(f"--{split}pref {pieces}/{split}.{pair}" for split in ("train", "valid", "test"))
        run(
            f"fairseq-preprocess -s {source} -t {target} {sets} --srcdict {binarized}/dict.en.txt "
            f"--tgtdict {binarized}/dict.en.txt --destdir {data_bin} --workers 1",
            folder,
        )
    sizes = " ".join(
        f"--{side}-{name} {value}" for side in ("encoder", "decoder")
        for name, value in (("layers", 2), ("embed-dim", 64), ("ffn-embed-dim", 128), ("attention-heads", 4))
    )  # fmt: skip
    lang_pairs = ",".join(d for pair in PAIRS for d in (pair, "-".join(reversed(pair.split("-")))))
    run(
        f"fairseq-train {data_bin} --task translation_multi_simple_epoch --arch transformer {sizes} "
        f"--encoder-normalize-before --decoder-normalize-before --share-all-embeddings --langs {','.join(LANGS)} "
        f"--lang-pairs {lang_pairs} --encoder-langtok src --decoder-langtok --optimizer adam --lr 0.005 --max-tokens 1000 "
        f"--max-source-positions 256 --max-target-positions 256 --max-update 40 --no-epoch-checkpoints --cpu "
        f"--num-workers 0 --disable-validation --save-dir {folder}/dense",
        folder,
    )
    sequence = commands("data-bin")
    assert len(sequence) == 7
    for command in sequence:
        run(small(command.replace("DATA_BIN", str(data_bin))), folder)
    return folder / "runs" / "theirs"


def test_a_foreign_data_bin_with_a_stock_checkpoint_becomes_a_report(theirs):
    card = read_json(theirs / "corpus" / "corpus.json", "card")
    assert card["langs"] == LANGS
    report = (theirs / "report.md").read_text(encoding="utf-8")
    for part in (
        "on the theirs corpus",
        "**specialized against dense-continuation, BLEU:**",
        "a data-bin made elsewhere",
    ):
        assert part in report, part
    scores = read_json(theirs / "evaluation" / "specialized" / "scores.json", "scores")
    assert {*scores["directions"]} == {*card["lang_pairs"]}
    assert all(of["off_target_fraction"] is not None for of in scores["directions"].values())


def test_a_run_whose_corpus_is_elsewhere_is_reported_without_it(theirs, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(
        theirs, run_folder, symlinks=True, ignore=shutil.ignore_patterns("corpus", "report.*", "comparison")
    )
    assert "neuron-spec data existing DATA_BIN --output run/corpus" in run(
        f"neuron-spec report {run_folder}", tmp_path
    )
    report = (run_folder / "report.md").read_text(encoding="utf-8")
    assert "## The corpus" not in report and "## Scores" in report
