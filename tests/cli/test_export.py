"""``neuron-spec export`` and ``translate`` as they are called: what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
import torch

from neuron_spec.cli.main import main
from neuron_spec.export.folder import CHECKPOINT, EXPORT_JSON, PIECES

MASKED = ("en-qa", "qa-en", "qb-en")
EN = ["ba ko li", "mu pe", "na ro ti ba"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def specialized(workshop, tmp_path_factory) -> Path:
    """With masks for some of the directions, whose translations end."""
    cfg, _, model = workshop.build("--max-source-positions", "40")
    with torch.no_grad():
        end = model.decoder.output_projection.weight[model.decoder.dictionary.eos()]
        model.decoder.layer_norm.weight.mul_(3)
        model.decoder.layer_norm.bias.add_(9 * end / end.square().sum())
    model.set_masks(workshop.masks(model, MASKED), workshop.langs)
    return workshop.save(tmp_path_factory.mktemp("specialized") / "checkpoint_last.pt", cfg, model)


@pytest.fixture(scope="module")
def exported(specialized, tmp_path_factory) -> Path:
    """Two directions, for stock fairseq, which needs no further library."""
    output = tmp_path_factory.mktemp("exported")
    words = ["--path", specialized, "--direction", "en-qa,qa-en", "--format", "fairseq", "--output", output]
    assert main(["export", *map(str, words)]) == 0
    return output


@pytest.fixture
def run(capsys, monkeypatch) -> Run:
    """A command's exit code, standard output and error."""

    def call(*words: object, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin.encode())))
        capsys.readouterr()
        code = main([*map(str, words)])
        return code, *capsys.readouterr()

    return call


def refused(found: tuple[int, str, str]) -> str:
    code, out, message = found
    assert (code, out) == (2, "")
    return message


# export ----------------------------------------------------------------------------------------


def test_a_folder_for_each_direction_and_complete_ones_are_left(run, specialized, exported):
    before = {file: file.stat().st_mtime_ns for file in exported.rglob("*")}
    names = {CHECKPOINT, PIECES, EXPORT_JSON, "dict.en.txt", "dict.qa.txt"}
    assert {file.name for file in (exported / "en-qa").iterdir()} == names
    words = ["--path", specialized, "--direction", "en-qa,qa-en", "--format", "fairseq", "--output", exported]
    code, out, err = run("export", *words)
    assert (code, out.split()) == (0, [str(exported / "en-qa"), str(exported / "qa-en")])
    assert f"{exported / 'en-qa'}: complete already" in err
    # How stock fairseq runs each.
    assert [line.split()[1] for line in err.splitlines() if line.startswith("fairseq-")] == out.split()
    assert before == {file: file.stat().st_mtime_ns for file in exported.rglob("*")}


def test_it_says_what_is_left_of_the_model(exported):
    said = json.loads((exported / "en-qa" / EXPORT_JSON).read_text())
    assert (said["direction"], said["source_tag"], said["target_tag"]) == ("en-qa", "__en__", "__qa__")
    assert all(0 < layer["kept"] < layer["of"] for layer in said["neurons"].values())
    assert said["signature"]["stage"] == "export"
    assert "checkpoint's masks" in said["signature"]["inputs"]


REFUSALS = {
    "a direction without masks": (["--direction", "qm-en"], "directions without masks"),
    "all, one of which has none": (["--all"], "directions without masks"),
    "a language that is unknown": (["--direction", "en-xx"], "unknown language in a direction"),
    "quantization of another format": (
        ["--direction", "en-qa", "--quantization", "int8"],
        "quantized for CTranslate2 alone",
    ),
    "another vocabulary's pieces": (["--direction", "en-qa", "--spm", "OTHER"], "is of another vocabulary"),
    "no SentencePiece model": (["--direction", "en-qa", "--spm", "NONE"], "not a SentencePiece model"),
    "no dictionary": (["--direction", "en-qa", "--data-bin", "EMPTY"], "has no dictionary of en"),
}


@pytest.mark.parametrize("flags, what", REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(run, specialized, tmp_path, flags, what):
    import sentencepiece

    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "NONE").write_text("text")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["XYZ ZYX YXZ"] * 9),
        model_prefix=str(tmp_path / "other"), vocab_size=9, minloglevel=2, model_type="bpe",
    )  # fmt: skip
    places = {
        "OTHER": tmp_path / "other.model",
        "NONE": tmp_path / "NONE",
        "EMPTY": tmp_path / "EMPTY",
    }
    words = [places.get(flag, flag) for flag in flags]
    output = tmp_path / "out"
    message = refused(run("export", "--path", specialized, "--format", "fairseq", "--output", output, *words))
    assert what in message
    assert not output.exists()


def test_a_folder_that_holds_something_else_is_left_alone(run, specialized, tmp_path):
    (tmp_path / "qa-en").mkdir()
    (tmp_path / "qa-en" / "mine.txt").write_text("mine")
    words = ["--direction", "en-qa,qa-en", "--format", "fairseq", "--output", tmp_path]
    assert "something is already here" in refused(run("export", "--path", specialized, *words))
    assert [file.name for file in tmp_path.rglob("*")] == ["qa-en", "mine.txt"]


def test_an_export_in_another_format_is_left_alone(run, specialized, exported):
    words = ["--direction", "en-qa", "--format", "safetensors", "--output", exported]
    message = refused(run("export", "--path", specialized, *words))
    assert "another export is already here" in message
    assert (exported / "en-qa" / CHECKPOINT).is_file()


def test_nothing_is_left_of_an_export_that_fails(run, specialized, tmp_path, monkeypatch):
    from neuron_spec.backends.fairseq.exporting import Exporter

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Exporter, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        run(
            "export", "--path", specialized, "--direction", "en-qa", "--format", "fairseq",
            "--output", tmp_path / "out",
        )  # fmt: skip
    assert not [*(tmp_path / "out").iterdir()]


def test_what_a_killed_export_left_is_cleared_and_what_runs_is_not(run, specialized, tmp_path):
    done = subprocess.Popen(["true"])
    done.wait()
    left, running = (tmp_path / f".en-qa.{number}.tmp" for number in (done.pid, os.getppid()))
    for folder in (left, running):
        folder.mkdir()
        (folder / "half").touch()
    words = ["--direction", "en-qa", "--format", "safetensors", "--output", tmp_path]
    assert run("export", "--path", specialized, *words)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"en-qa", running.name}


def reorder(folder: Path) -> None:
    for file in folder.glob("dict.*"):
        lines = file.read_text().splitlines(keepends=True)
        lines[20], lines[30] = lines[30], lines[20]
        file.write_text("".join(lines))


def say(**values: object) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / EXPORT_JSON
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


CHANGED = {
    "an empty checkpoint": (lambda folder: (folder / CHECKPOINT).write_bytes(b""), "gone, damaged or others"),
    "no checkpoint": (lambda folder: (folder / CHECKPOINT).unlink(), "gone, damaged or others"),
    "another direction's checkpoint": (
        lambda folder: shutil.copy(folder.parent / "qa-en" / CHECKPOINT, folder),
        "gone, damaged or others",
    ),
    "a reordered dictionary": (reorder, "gone, damaged or others"),
    "a binary dictionary": (
        lambda folder: (folder / "dict.en.txt").write_bytes(b"\xff\xfe\0"),
        "gone, damaged or others",
    ),
    "another target tag": (say(target_tag="__qb__"), "description was changed"),
    "a tag that is a number": (say(target_tag=5), "description was changed"),
    "a direction that is a number": (say(direction=5), "description was changed"),
    "a negative length": (say(max_source_positions=-5), "description was changed"),
    "an infinite length": (say(max_source_positions=float("inf")), "not valid JSON"),
    "a list": (lambda folder: (folder / EXPORT_JSON).write_text("[]"), "not an export"),
}


@pytest.mark.parametrize("spoil, what", CHANGED.values(), ids=CHANGED)
def test_an_export_that_was_changed_is_neither_complete_nor_run(
    run, specialized, exported, tmp_path, spoil, what
):
    shutil.copytree(exported, tmp_path / "out")
    spoil(tmp_path / "out" / "en-qa")
    words = ["--direction", "en-qa", "--cpu"]
    assert what in refused(run("translate", "--path", tmp_path / "out", *words, stdin="ba ko\n"))
    words = ["--direction", "en-qa", "--format", "fairseq", "--output", tmp_path / "out"]
    code, out, message = run("export", "--path", specialized, *words)
    assert (code, out) == (2, "") and (what in message or "another export" in message)


def damaged(path: Path, specialized: Path, change: Callable[[dict], object]) -> Path:
    state = torch.load(specialized, weights_only=False)
    change(state["model"])
    torch.save(state, path)
    return path


def lose_a_layer(weights: dict) -> None:
    for key in [key for key in weights if "layers.1." in key]:
        del weights[key]


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda weights: weights["encoder.layers.0.fc1.weight"][0, :2].fill_(float("nan")), "2 of 768 are NaN"),
        (lambda weights: weights["decoder.layers.1.fc2.bias"][:1].fill_(float("inf")), "weights that are no numbers"),
        (lose_a_layer, "lacks weights of the model"),
    ],
    ids=["NaN", "infinite", "a layer is gone"],
)  # fmt: skip
def test_a_damaged_model_is_neither_exported_nor_run(run, specialized, tmp_path, change, what):
    path = damaged(tmp_path / "damaged.pt", specialized, change)
    words = ["--path", path, "--direction", "en-qa"]
    more = ["--format", "safetensors", "--output", tmp_path / "out"]
    assert what in refused(run("export", *words, *more))
    assert not (tmp_path / "out").exists()
    assert what in refused(run("translate", *words, "--cpu", stdin="ba ko\n"))


def test_an_export_whose_pieces_are_named_later_translates(run, specialized, workshop, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for file in workshop.data_bin.glob("dict.*"):
        shutil.copy(file, theirs)
    words = [
        "--direction",
        "en-qa",
        "--format",
        "fairseq",
        "--output",
        tmp_path / "out",
        "--data-bin",
        theirs,
    ]
    assert "to translate text, name one with --spm" in run("export", "--path", specialized, *words)[2]
    words = ["--path", tmp_path / "out", "--direction", "en-qa", "--cpu", "--max-len-b", "20"]
    assert "has no SentencePiece model" in refused(run("translate", *words, stdin="ba\n"))
    spm = workshop.data_bin.parent / "spm" / PIECES
    assert run("translate", *words, "--spm", spm, stdin="ba\n")[0] == 0


@pytest.mark.parametrize("form", ["fairseq", "ctranslate2"])
def test_pieces_of_another_vocabulary_are_not_those_of_an_export(run, specialized, tmp_path, form):
    if form == "ctranslate2":
        pytest.importorskip("ctranslate2")
    words = ["--direction", "en-qa", "--format", form, "--output", tmp_path / "out"]
    assert run("export", "--path", specialized, *words)[0] == 0
    lines = [f"{a}{b} {c}{a}" for a in "xyzwv" for b in "kgjhf" for c in "rtpsd"]
    other = tmp_path / "other.model"
    with other.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=60, model_type="bpe", minloglevel=2
        )
    words = ["--path", tmp_path / "out", "--direction", "en-qa", "--cpu", "--spm", other]
    assert "of another vocabulary" in refused(run("translate", *words, stdin="ba\n"))


def test_masks_are_composed_where_that_is_asked_for(run, specialized, tmp_path):
    words = ["--direction", "qb-qa", "--format", "safetensors", "--output", tmp_path]
    assert "directions without masks" in refused(run("export", "--path", specialized, *words))
    assert run("export", "--path", specialized, *words, "--missing-direction", "compose")[0] == 0
    assert run("export", "--path", specialized, "--direction", "qb-en,en-qa", *words[2:])[0] == 0
    kept = {
        name: json.loads((tmp_path / name / EXPORT_JSON).read_text())["neurons"]
        for name in ("qb-qa", "qb-en", "en-qa")
    }
    for layer, composed in kept["qb-qa"].items():
        assert composed == kept["qb-en" if layer.startswith("encoder") else "en-qa"][layer]


def test_adapters_cannot_be_exported(run, workshop, tmp_path):
    cfg, task, model = workshop.build(
        "--adapter-size", "4", "--adapters", "direction", arch="neuron_spec_adapters_tiny"
    )
    model.start_training(cfg.model, task.directions, task.langs)
    path = workshop.save(tmp_path / "adapters.pt", cfg, model)
    words = ["--direction", "en-qa", "--format", "safetensors", "--output", tmp_path / "out"]
    assert "a model with adapters cannot be exported" in refused(run("export", "--path", path, *words))
    assert not (tmp_path / "out").exists()


def test_a_folder_in_a_checkpoints_place_is_said(run, specialized, tmp_path):
    words = ["--direction", "en-qa", "--format", "safetensors", "--output", tmp_path / "out"]
    assert "got:      a folder" in refused(run("export", "--path", specialized.parent, *words))


def test_a_checkpoint_of_another_task_is_refused(run, workshop, tmp_path):
    cfg, _, model = workshop.build()
    path = workshop.save(tmp_path / "other.pt", cfg, model)
    state = torch.load(path, weights_only=False)
    state["cfg"]["task"] = {"_name": "translation"}
    torch.save(state, path)
    words = ["--direction", "en-qa", "--format", "safetensors", "--output", tmp_path / "out"]
    assert "not a multilingual checkpoint" in refused(run("export", "--path", path, *words))


def test_ctranslate2_that_is_not_installed_is_named(run, specialized, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["--direction", "en-qa", "--format", "ctranslate2", "--output", tmp_path / "out"]
    assert "pip install ctranslate2" in refused(run("export", "--path", specialized, *words))


# translate -------------------------------------------------------------------------------------


def test_an_export_translates_as_its_checkpoint(run, specialized, exported):
    text = "".join(f"{line}\n" for line in EN)
    flags = ["--direction", "en-qa", "--json", "--cpu", "--max-len-b", "20"]
    found = [run("translate", "--path", path, *flags, stdin=text) for path in (specialized, exported)]
    assert [code for code, *_ in found] == [0, 0]
    one, other = ([json.loads(line) for line in out.splitlines()] for _, out, _ in found)
    assert [line["source"] for line in one] == EN
    assert [line["translation"] for line in one] == [line["translation"] for line in other]
    assert [line["score"] for line in one] == pytest.approx([line["score"] for line in other], abs=1e-5)


def test_ctranslate2_translates_as_the_checkpoint_without_fairseq(run, specialized, tmp_path):
    pytest.importorskip("ctranslate2")
    words = ["--direction", "en-qa", "--format", "ctranslate2", "--output", tmp_path]
    assert run("export", "--path", specialized, *words)[0] == 0
    text = "".join(f"{line}\n" for line in EN)
    flags = ["--direction", "en-qa", "--cpu", "--max-len-b", "20"]
    _, wanted, _ = run("translate", "--path", specialized, *flags, stdin=text)
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(('fairseq', 'torch')))\n"  # None: cannot be imported
        f"from neuron_spec.cli.main import main\nsys.exit(main(['translate', '--path', {str(tmp_path)!r}, *{flags}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, wanted), done.stderr


def test_directions_of_one_stream_keep_their_order_and_blank_lines_stay_blank(run, specialized):
    flags = ["--cpu", "--max-len-b", "20"]
    alone = {
        name: run("translate", "--path", specialized, "--direction", name, *flags, stdin="ba ko\nmu\n")[1]
        for name in ("en-qa", "qa-en")
    }
    assert alone["en-qa"] != alone["qa-en"]
    stream = "en-qa\tba ko\nqa-en\tba ko\nen-qa\t\nqa-en\tmu\n\nen-qa\tmu"
    code, out, _ = run("translate", "--path", specialized, *flags, stdin=stream)
    first, second = (alone[name].splitlines() for name in ("en-qa", "qa-en"))
    assert (code, out.split("\n")) == (0, [first[0], second[0], "", second[1], "", first[1], ""])
    blank = run("translate", "--path", specialized, *flags, "--json", stdin="\n")[1]
    assert json.loads(blank) == {"direction": None, "source": "", "translation": "", "score": None}


def test_two_exports_of_a_direction_in_one_folder_are_refused(run, exported, tmp_path):
    for name in ("one", "other"):
        shutil.copytree(exported / "en-qa", tmp_path / name)
    code, out, errors = run("translate", "--path", tmp_path, stdin="ba ko\n")
    assert (code, out) == (2, "") and "two exports of" in errors and "one, other" in errors


def test_an_export_knows_its_only_direction(run, exported):
    flags = ["--cpu", "--max-len-b", "20"]
    named = run("translate", "--path", exported, "--direction", "en-qa", *flags, stdin="ba ko\n")
    assert run("translate", "--path", exported / "en-qa", *flags, stdin="ba ko\n")[:2] == named[:2]


LINES = {
    "an unknown direction": ("en-qa\tba\nen-xx\tba\n", [], "line 2: direction 'en-xx'"),
    "no direction": ("en-qa\tba\nba ko\n", [], "line 2: 'ba ko', which has no tab"),
    "a direction without masks": ("qm-en\tba\n", [], "line 1: direction 'qm-en'"),
    "one that compose would add": ("en-qa\tba\nqb-qa\tba\n", [], "--missing-direction compose"),
    "too long": (f"ba\n{'ba ' * 60}\n", ["--direction", "en-qa"], "line 2: "),
    "a zero byte": ("ba\nb\0a\0\n", ["--direction", "en-qa"], "standard input, line 2"),
    "not UTF-8": ("ba\n\udcff\n", ["--direction", "en-qa"], "standard input, line 2"),
    "--direction that is unknown": ("ba\n", ["--direction", "en-qq"], "did you mean"),
}


@pytest.mark.parametrize("text, flags, where", LINES.values(), ids=LINES)
def test_bad_lines_are_said_with_their_number(specialized, tmp_path, monkeypatch, capsys, text, flags, where):
    stdin = SimpleNamespace(buffer=io.BytesIO(text.encode("utf-8", "surrogateescape")))
    monkeypatch.setattr(sys, "stdin", stdin)
    output = tmp_path / "out.txt"
    words = ["translate", "--path", specialized, "--cpu", *flags, "--output", output]
    assert main([*map(str, words)]) == 2
    assert where in capsys.readouterr().err
    assert not output.exists()


def test_a_batch_has_one_sentence_at_least(run, specialized, exported):
    words = ["--direction", "en-qa", "--cpu", "--max-len-b", "20"]
    for path in (specialized, exported):
        wanted = run("translate", "--path", path, *words, stdin="ba ko li mu pe\nba\n")
        small = run("translate", "--path", path, *words, "--max-tokens", "3", stdin="ba ko li mu pe\nba\n")
        assert small[:2] == wanted[:2] and wanted[0] == 0


@pytest.mark.parametrize(
    "flags",
    [["--beam", "100000"], ["--lenpen", "1e300"], ["--max-len-a", "1e308"], ["--max-tokens", "9" * 30]],
    ids=" ".join,
)
def test_numbers_without_measure_are_refused(run, exported, capsys, flags):
    with pytest.raises(SystemExit) as end:
        run("translate", "--path", exported, "--direction", "en-qa", *flags, stdin="ba\n")
    assert end.value.code == 2 and f"argument {flags[0]}: {flags[1]!r} is not" in capsys.readouterr().err


def test_composed_masks_translate_a_direction_without(run, specialized):
    words = ["--path", specialized, "--direction", "qb-qa", "--cpu", "--max-len-b", "20"]
    said = refused(run("translate", *words, stdin="ba\n"))
    assert "no such direction here" in said and "--missing-direction compose" in said
    code, out, _ = run("translate", *words, "--missing-direction", "compose", stdin="ba\n")
    assert (code, out.count("\n")) == (0, 1)


def test_flags_that_are_not_heeded_are_refused(run, exported, workshop, checkpoint, tmp_path):
    words = ["--path", exported, "--direction", "en-qa"]
    for more in (["--data-bin", workshop.data_bin], ["--missing-direction", "compose"]):
        assert "flags that are of checkpoints" in refused(run("translate", *words, *more, stdin="ba\n"))
    compose = ["--path", checkpoint, "--direction", "en-qa", "--missing-direction", "compose"]
    assert "has no masks to compose" in refused(run("translate", *compose, stdin="ba\n"))
    (tmp_path / "out").touch()
    assert "something is already here" in refused(run("translate", *words, "--output", tmp_path / "out"))
    assert "no export in the folder" in refused(run("translate", "--path", tmp_path))


def test_a_checkpoint_whose_data_bin_is_gone_asks_for_one(run, specialized, workshop, tmp_path):
    state = torch.load(specialized, weights_only=False)
    state["cfg"]["task"].data = "/nowhere/data-bin"
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)
    words = ["--path", path, "--direction", "en-qa", "--cpu", "--max-len-b", "20"]
    assert "the data-bin that the checkpoint was trained on is not here" in refused(run("translate", *words))
    bare = tmp_path / "data-bin"
    bare.mkdir()
    for file in workshop.data_bin.glob("dict.*"):
        shutil.copy(file, bare)
    words += ["--data-bin", bare]
    assert "no SentencePiece model beside the data-bin" in refused(run("translate", *words))
    spm = workshop.data_bin.parent / "spm" / PIECES
    assert run("translate", *words, "--spm", spm, stdin="ba\n")[0] == 0


# What it gains ---------------------------------------------------------------------------------


def test_the_benchmark_compares_the_same_translations(specialized, tmp_path, monkeypatch):
    pytest.importorskip("ctranslate2")
    script = Path(__file__).parents[2] / "benchmarks" / "export.py"
    words = [specialized, "--lang-pairs", "en-qa", "--max-len-b", "20", "--output", tmp_path]
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")
    found = json.loads((tmp_path / "export.cpu.json").read_text())
    rows = found["models"]["specialized"]
    assert [*rows] == ["fairseq-generate", "float32", "int8"]
    assert rows["float32"]["same_translations_fraction"] == 1
    assert rows["float32"]["bleu"] == rows["fairseq-generate"]["bleu"]
    assert rows["int8"]["mb"] < rows["float32"]["mb"]
    assert all(row["tokens_per_s"] > 0 and row["ratio"] > 0 for row in rows.values())
