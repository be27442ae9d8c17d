"""neuron-spec select: methods, flags that do not combine, and masks that are already there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from neuron_spec.artifacts import signature
from neuron_spec.cli.main import main
from neuron_spec.directions import parse_directions
from neuron_spec.neurons.activations import ActivationCounts
from neuron_spec.neurons.choices import METHODS
from neuron_spec.neurons.masks import NeuronMasks

DIRECTIONS = parse_directions("en-de,de-en,en-nl,nl-en,en-ru,ru-en")
WIDTHS = {"encoder.layers.0": 48, "decoder.layers.0": 40}
FLAGS = {"top-fraction": ["--fraction", "50"], "shared-core": ["--core", "10"]}


def write_profile(path: Path, directions: str = "", seed: int = 1, least: int = 0) -> Path:
    found = ActivationCounts.zeros(parse_directions(directions) if directions else DIRECTIONS, WIDTHS)
    generator = torch.Generator().manual_seed(seed)
    for counts in found.counts.values():
        counts += torch.randint(least, 200, counts.shape, generator=generator)
    for tokens in found.tokens.values():
        tokens += 200
    found.metadata = {"checkpoint_sha256": "c"}
    found.save(path)
    return path


@pytest.fixture
def profile(tmp_path) -> Path:
    return write_profile(tmp_path / "profile.safetensors")


def made(profile: Path, name: str, *flags: Any) -> NeuronMasks:
    output = profile.parent / f"{name}.safetensors"
    assert main(["select", str(profile), "--output", str(output), *map(str, flags)]) == 0
    return NeuronMasks.load(output)


def refusal(capsys: pytest.CaptureFixture[str], profile: Path, *flags: Any) -> str:
    """What it says on refusing; it must leave nothing behind."""
    output = profile.parent / "refused" / "masks.safetensors"
    capsys.readouterr()
    assert main(["select", str(profile), "--output", str(output), *map(str, flags)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and not output.parent.exists()
    return said.err


def sizes(masks: NeuronMasks) -> dict[str, list[int]]:
    return {layer: kept.sum(dim=1).tolist() for layer, kept in masks.kept.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_did(profile, capsys, method):
    masks = made(profile, "masks", "--method", method, *FLAGS.get(method, []))
    said = capsys.readouterr()
    assert said.out.split() == [str(profile.parent / "masks.safetensors")]
    assert "dropped neurons, percent" in said.err and "decoder.layers.0" in said.err
    summary = json.loads((profile.parent / "masks.json").read_text())
    for metadata in (masks.metadata, summary, masks.metadata["signature"]["parameters"]):
        assert metadata["method"] == method and metadata["neuron_sets"] == "direction"
        assert ("k_percent" in metadata) == (method != "top-fraction")
        assert ("seed" in metadata) == (method == "matched-random")
        assert ("set_of" in metadata) == (method == "other-direction")
        assert "only_side" not in metadata
    assert masks.metadata["checkpoint_sha256"] == "c"


def test_methods_give_different_sets(profile):
    prints = {method: made(profile, method, "--method", method, *FLAGS.get(method, [])) for method in METHODS}
    assert len({masks.fingerprint for masks in prints.values()}) == len(METHODS)
    assert sizes(prints["matched-random"]) == sizes(prints["cumulative"])
    assert sizes(prints["top-fraction"]) == {layer: [width // 2] * 6 for layer, width in WIDTHS.items()}


def test_the_default_is_the_paper_s_method_at_95(profile):
    plain = made(profile, "plain")
    assert plain.fingerprint == made(profile, "named", "--method", "cumulative", "--k", "95").fingerprint
    assert plain.metadata["k_percent"]["encoder"]["en-de"] == 95


def test_matched_random_follows_k_seed_and_kind_of_set(profile):
    for number, flags in enumerate((["--k", "60"], ["--k-for", "en-*=50"], ["--neuron-sets", "language"])):
        random = made(profile, f"random{number}", "--method", "matched-random", *flags)
        assert sizes(random) == sizes(made(profile, f"cumulative{number}", *flags))
    one, two = (made(profile, f"seed{s}", "--method", "matched-random", "--seed", s) for s in (1, 2))
    default = made(profile, "default", "--method", "matched-random")
    assert default.fingerprint == one.fingerprint != two.fingerprint


def test_swapped_directions(profile):
    plain = made(profile, "plain")
    swapped = made(profile, "swapped", "--method", "other-direction", "--swap", "en-de:en-ru")
    for layer, kept in plain.kept.items():
        assert torch.equal(swapped.kept[layer], kept[[4, 1, 2, 3, 0, 5]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("side", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_only_side(profile, method, side, other):
    flags = ["--method", method, *FLAGS.get(method, [])]
    both, one = made(profile, "both", *flags), made(profile, "one", *flags, "--only-side", side)
    assert one.kept[f"{other}.layers.0"].all() and not one.kept[f"{side}.layers.0"].all()
    assert torch.equal(one.kept[f"{side}.layers.0"], both.kept[f"{side}.layers.0"])
    assert one.metadata["only_side"] == side


@pytest.mark.parametrize("method", METHODS)
def test_all_hundred_percent_of_neurons_that_are_all_active(tmp_path, method):
    profile = write_profile(tmp_path / "p.safetensors", least=1)
    flags = ["--fraction", "100"] if method == "top-fraction" else ["--k", "100"]
    assert all(kept.all() for kept in made(profile, "m", "--method", method, *flags).kept.values())


@pytest.mark.parametrize("method", METHODS)
def test_one_direction_and_two(tmp_path, capsys, method):
    flags = ["--method", method, *FLAGS.get(method, [])]
    one = write_profile(tmp_path / "one.safetensors", "en-de")
    if method == "other-direction":
        assert "profile more directions" in refusal(capsys, one, *flags)
    else:
        assert made(one, "m1", *flags).directions == parse_directions("en-de")
    two = write_profile(tmp_path / "two.safetensors", "en-de,en-ru")
    assert len(made(two, "m2", *flags).directions) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--fraction 50", "--fraction changes nothing here"),
        ("--seed 1", "--seed changes nothing here"),
        ("--swap en-de:en-ru", "--swap changes nothing here"),
        ("--method matched-random --swap en-de:en-ru", "--swap changes nothing here"),
        ("--method other-direction --seed 0", "--seed changes nothing here"),
        ("--method top-fraction", "how many neurons?"),
        ("--method top-fraction --fraction 50 --k 95", "--k changes nothing here"),
        ("--method top-fraction --fraction 50 --encoder-k 95", "--encoder-k changes nothing here"),
        ("--method top-fraction --fraction 50 --k-for *=9", "--k-for changes nothing here"),
        ("--k 95 --encoder-k 90 --decoder-k 70", "--k changes nothing here"),
        ("--core 50", "--core changes nothing here"),
        ("--method shared-core --core 0", "bad --core"),
        ("--method top-fraction --fraction 0", "bad --fraction"),
        ("--method top-fraction --fraction 101", "bad --fraction"),
        ("--method other-direction --neuron-sets language", "drop --neuron-sets language"),
        ("--method other-direction --swap en-de", "malformed --swap"),
        ("--method other-direction --swap en-de:en-xx", "without a profile"),
        ("--method intersection-of-all --k 1", "no neuron is kept for all directions"),
        ("--only-side encoder --decoder-k 90", "a k of the decoder changes nothing here"),
        ("--only-side decoder --k-for en-*:encoder=90", "a k of the encoder changes nothing here"),
    ],
)
def test_what_does_not_combine(profile, capsys, flags, said):
    message = refusal(capsys, profile, *flags.split())
    assert said in message and ("expected:" in message or "mend:" in message)


@pytest.mark.parametrize(
    "flags", ["--fraction 50", "--method top-fraction --fraction 0", "--only-side encoder --decoder-k 90"]
)
def test_flags_are_refused_before_any_file_is_read(tmp_path, capsys, flags):
    (tmp_path / "profile").write_bytes(b"none")
    assert "cannot be read" not in refusal(capsys, tmp_path / "profile", *flags.split())


# Already there


@pytest.mark.parametrize("method", METHODS)
def test_complete_masks_are_left_alone(profile, capsys, method):
    flags = ["--method", method, *FLAGS.get(method, [])]
    masks = made(profile, "masks", *flags)
    files = [profile.parent / "masks.safetensors", profile.parent / "masks.json"]
    before = [path.stat().st_mtime_ns for path in files]
    capsys.readouterr()
    assert made(profile, "masks", *flags).fingerprint == masks.fingerprint
    said = capsys.readouterr()
    assert "complete already" in said.err and "dropped neurons, percent" in said.err
    assert said.out.split() == [str(files[0])]
    assert [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize(
    "flags",
    [
        "--k 90",
        "--k-for en-de=90",
        "--only-side encoder",
        "--neuron-sets language",
        "--method matched-random",
        "--method top-fraction --fraction 50",
        "--method intersection-of-all",
        "--method other-direction",
    ],
)
def test_other_masks_are_not_overwritten(profile, capsys, flags):
    made(profile, "masks")
    output = profile.parent / "masks.safetensors"
    before = output.read_bytes(), output.with_suffix(".json").read_bytes()
    capsys.readouterr()
    command = ["select", str(profile), "--output", str(output)]
    assert main([*command, *flags.split()]) == 2
    message = capsys.readouterr().err
    assert "another mask file is already here" in message and "parameters." in message
    assert (output.read_bytes(), output.with_suffix(".json").read_bytes()) == before
    # The message names what differs and nothing else.
    assert "dropped" not in message and "inputs." not in message
    write_profile(profile, seed=2)
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "inputs.profile" in message and "parameters." not in message


def test_masks_of_another_seed_or_swap_are_other_masks(profile):
    output = str(profile.parent / "random.safetensors")
    command = ["select", str(profile), "--output", output, "--method", "matched-random"]
    assert [main([*command, "--seed", seed]) for seed in ("1", "1", "2")] == [0, 0, 2]
    command = ["select", str(profile), "--output", output[:-12] + "2", "--method", "other-direction"]
    assert [main(command), main([*command, "--swap", "en-de:en-ru"])] == [0, 2]


def test_masks_without_a_signature_are_not_overwritten(profile, capsys):
    output = profile.parent / "own.safetensors"
    NeuronMasks(DIRECTIONS, {layer: torch.ones(6, n, dtype=torch.bool) for layer, n in WIDTHS.items()}).save(
        output
    )
    before = output.read_bytes()
    assert main(["select", str(profile), "--output", str(output)]) == 2
    assert "no signature" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_profiles_of_one_name_are_told_apart(tmp_path, capsys):
    """The signature must hold every one of them, in whatever order."""
    paths = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        paths.append(str(write_profile(tmp_path / str(seed) / "profile.safetensors", seed=seed)))
    output = ["--output", str(tmp_path / "masks.safetensors")]
    assert main(["select", *paths, *output]) == 0
    assert main(["select", *reversed(paths), *output]) == 0
    assert "complete already" in capsys.readouterr().err
    assert main(["select", paths[1], *output]) == 2


@pytest.mark.parametrize(
    "parts, is_right",
    [
        (["1/2", "2/2"], True),
        (["1/4", "2/4", "2/2"], False),  # the last holds the second
        (["1/4", "3/4", "2/2"], True),
        (["1/2", "1/2"], False),
        (["1/1", "1/1"], False),
        (["1/2", "1/1"], False),
        (["1/2", "1/3"], False),
    ],
)
def test_no_sentence_is_counted_twice(parts, is_right, tmp_path, capsys):
    paths = []
    for number, part in enumerate(parts):
        made = ActivationCounts.load(write_profile(tmp_path / "one.safetensors"))
        of = {} if part == "1/1" else {"part": part}
        made.metadata |= {
            **of,
            "signature": signature("profile", inputs={"data": "x"}, parameters={"y": 1, **of}),
        }
        made.save(tmp_path / f"{number}.safetensors")
        paths.append(str(tmp_path / f"{number}.safetensors"))
    output = tmp_path / "masks.safetensors"
    assert main(["select", *paths, "--output", str(output)]) == (0 if is_right else 2)
    assert output.exists() == is_right and ("counted twice" in capsys.readouterr().err) != is_right
