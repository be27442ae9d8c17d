"""``neuron-spec analyze`` on masks of made-up counts."""

from __future__ import annotations

import json

import pytest
import torch

from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.neurons.activations import ActivationCounts

DIRECTIONS = parse_directions("en-de,de-en,en-nl,nl-en,en-ru,ru-en")


def save_profile(path, seed=0, directions=DIRECTIONS):
    profile = ActivationCounts.zeros(directions, {"encoder.layers.0": 30, "decoder.layers.0": 20})
    generator = torch.Generator().manual_seed(seed)
    for counts in profile.counts.values():
        counts += torch.randint(1, 100, counts.shape, generator=generator)
    for tokens in profile.tokens.values():
        tokens += 100
    profile.metadata = {"checkpoint_sha256": "c0ffee"}
    profile.save(path)
    return path


@pytest.fixture
def profile(tmp_path):
    return save_profile(tmp_path / "profile.safetensors")


@pytest.fixture
def masks(profile, tmp_path, capsys):
    output = tmp_path / "masks.safetensors"
    assert main(["select", str(profile), "--output", str(output)]) == 0
    capsys.readouterr()
    return output


@pytest.fixture
def analyze(masks, tmp_path):
    return lambda *more: main(["analyze", str(masks), "--output", str(tmp_path / "out"), *map(str, more)])


@pytest.mark.slow
def test_an_analysis_is_written_once(analyze, profile, tmp_path, capsys):
    half = save_profile(tmp_path / "half.safetensors", seed=1)
    assert analyze("--profile", profile, half) == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out.split() == [str(out / "analysis.md")]
    found = json.loads((out / "analysis.json").read_text())
    own = found["stability"]["layers"]["encoder.layers.0"]
    assert own["with_masks_percent"][str(profile)]["mean"] == 100
    assert own["with_first_percent"][str(half)]["mean"] < 100
    assert {path.name for path in out.iterdir()} == {"analysis.json", "analysis.md", "iou.csv", "figures"}

    before = (out / "analysis.json").stat().st_mtime_ns
    assert analyze("--profile", profile, half) == 0
    assert "complete already" in capsys.readouterr().err
    assert (out / "analysis.json").stat().st_mtime_ns == before
    for other in (["--seed", "2"], ["--group", "all"], ["--profile", half, profile]):
        assert analyze(*other) == 2
        assert "another analysis is already here" in capsys.readouterr().err
    assert (out / "analysis.json").stat().st_mtime_ns == before


def test_distances_and_families_may_be_given(analyze, tmp_path):
    table = tmp_path / "distances.csv"
    table.write_text("language,language,distance\nde,nl,9\nde,ru,1\nnl,ru,2\n")
    card = tmp_path / "corpus.json"
    card.write_text(json.dumps({"families": {"de": "One", "nl": "One", "ru": "One"}}))
    assert analyze("--distances", table, "--corpus-card", card) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["languages"]["ru"]["family"] == "One"
    own = found["sides"]["decoder"]["mean_over_layers"]
    assert "no family structure" in own["families"]["reason"]
    assert own["language_distances"]["correlation"] is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--profile", "absent.safetensors"], "profile not found"),
        (["--distances", "absent.csv"], "table of distances not found"),
        (["--corpus-card", "absent.json"], "corpus card not found"),
    ],
)
def test_bad_input_writes_nothing(analyze, tmp_path, capsys, flags, said):
    assert analyze(*flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_profiles_that_do_not_fit_write_nothing(analyze, profile, tmp_path, capsys):
    fewer = save_profile(tmp_path / "fewer.safetensors", directions=DIRECTIONS[:4])
    assert analyze("--profile", profile, fewer) == 2
    message = capsys.readouterr().err
    assert "en-ru, ru-en" in message and "fewer.safetensors" in message
    assert analyze("--profile", profile, profile) == 2
    assert "names a file twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("k", ["95", "100"])
@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ("en-de", ["overlap needs a pair"]),
        ("en-de,de-en", []),
        ("en-de,de-en,en-ru,ru-en", ["no family structure"]),
        ("en-qa,qa-en,en-de,de-en,en-nl,nl-en", ["of unknown family, so in no comparison of families: qa"]),
    ],
    ids=["one direction", "two languages", "three languages", "unknown family"],
)
def test_few_directions_and_no_sparsity_give_sensible_pages(tmp_path, capsys, pairs, said, k):
    directions = parse_directions(pairs)
    profiles = [save_profile(tmp_path / f"{seed}.safetensors", seed, directions) for seed in (0, 1)]
    masks, out = tmp_path / "masks.safetensors", tmp_path / "out"
    assert main(["select", str(profiles[0]), "--output", str(masks), "--k", k]) == 0
    assert main(["analyze", str(masks), "--output", str(out), "--profile", *map(str, profiles)]) == 0
    page = (out / "analysis.md").read_text()
    assert "nan" not in page and "None" not in page
    found = json.loads((out / "analysis.json").read_text(), parse_constant=pytest.fail)
    for text in said:
        assert text in page
    for side in found["sides"].values():
        for layer in side["layers"].values():
            for dropped in layer["dropped_percent"].values():
                assert (dropped["max"] == 0) == (k == "100")
            if k == "100" and layer["iou_percent"]["mean"] is not None:
                assert layer["iou_percent"]["mean"] == 100
    assert found["languages"].get("qa", {"family": "unknown"})["family"] == "unknown"
    linked = {line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    assert linked and all((out / figure).stat().st_size > 1000 for figure in linked)


def test_a_profile_is_no_mask_file(profile, tmp_path, capsys):
    assert main(["analyze", str(profile), "--output", str(tmp_path / "out")]) == 2
    assert "not a mask file" in capsys.readouterr().err


FLORES = {"en": "eng_Latn", "de": "deu_Latn", "nl": "nld_Latn", "ru": "rus_Cyrl"}
MBART = {"en": "en_XX", "de": "de_DE", "nl": "nl_XX", "ru": "ru_RU"}


@pytest.mark.slow
@pytest.mark.parametrize("codes", [FLORES, MBART], ids=["flores", "mbart"])
def test_other_codes_of_the_same_languages_change_nothing_but_names(analyze, codes, tmp_path, capsys):
    assert analyze() == 0
    renamed = [type(d)(codes[d.source], codes[d.target]) for d in DIRECTIONS]
    profile = save_profile(tmp_path / "renamed.safetensors", directions=renamed)
    assert main(["select", str(profile), "--output", str(tmp_path / "renamed-masks.safetensors")]) == 0
    words = ["analyze", str(tmp_path / "renamed-masks.safetensors"), "--output", str(tmp_path / "renamed")]
    assert main(words) == 0
    assert "unknown family" not in capsys.readouterr().err
    plain, other = (json.loads((tmp_path / n / "analysis.json").read_text()) for n in ("out", "renamed"))
    assert other["directions"] == [str(direction) for direction in renamed]
    assert other["languages"] == {codes[code]: known for code, known in plain["languages"].items()}
    for side, found in plain["sides"].items():
        assert found["mean_over_layers"]["families"]["p"] is not None
        assert other["sides"][side]["mean_over_layers"] == found["mean_over_layers"]
        assert other["sides"][side]["layers"] == found["layers"]


@pytest.mark.slow
def test_languages_without_family_are_named_once(tmp_path, capsys):
    profile = save_profile(
        tmp_path / "p.safetensors", directions=parse_directions("en-xx,xx-en,en-de,de-en,xx-de")
    )
    assert main(["select", str(profile), "--output", str(tmp_path / "m.safetensors")]) == 0
    card = tmp_path / "corpus.json"
    card.write_text(json.dumps({"families": {"xx": "Invented", "de": "Germanic", "en": "Germanic"}}))
    for more, said in (([], 1), (["--corpus-card", card], 0)):
        words = ["analyze", tmp_path / "m.safetensors", "--output", tmp_path / f"out{said}", *more]
        assert main([*map(str, words)]) == 0
        assert capsys.readouterr().err.count("languages with unknown family: xx;") == said
