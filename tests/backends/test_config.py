"""Config files: strict, and the shipped ones known to fairseq's parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuron_spec.backends.fairseq.config import KEPT_CONFIG, keep_config, read_flags, updates_of
from neuron_spec.errors import ArtifactError, NeuronSpecError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_fairseq_knows_every_flag_of_the_shipped_configs(path: Path) -> None:
    flags = read_flags(path, gpus=1)
    assert "--max-tokens" in flags
    # Checkpoints are chosen, and patience is counted, by the loss of the text.
    chosen = {flag: flags[flags.index(flag) + 1] for flag in ("--criterion", "--best-checkpoint-metric")}
    assert chosen["--criterion"] == "label_smoothed_cross_entropy_text"
    assert chosen["--best-checkpoint-metric"] == "text_nll_loss"
    assert "--maximize-best-checkpoint-metric" not in flags


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_switches_numbers_and_words(tmp_path: Path) -> None:
    path = write(
        tmp_path, "lr: 0.0005\nshare-all-embeddings: true\nencoder-learned-pos: false\noptimizer: adam\n"
    )
    assert read_flags(path) == ["--lr", "0.0005", "--share-all-embeddings", "--optimizer", "adam"]


def test_a_config_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"# caf\xe9\nlr: 0.1\n")
    with pytest.raises(ArtifactError, match="not YAML"):
        read_flags(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning-rate: 0.1\n", "lerning-rate"),
        ("- lr\n", "not a mapping"),
        ("lr: [1, 2]\n", "one number, word or switch"),
        ("lr: {", "not YAML"),
        (
            "tokens-per-update: 8000\nmax-tokens: 1000\nupdate-freq: 2\n",
            "both tokens-per-update and update-freq",
        ),
        ("tokens-per-update: 8000\nmax-tokens: 1000\n", "needs the number of GPUs"),
        ("tokens-per-update: 8000\n", "two whole numbers above 0"),
        ("tokens-per-update: 8.5\nmax-tokens: 1000\n", "two whole numbers above 0"),
        ("tokens-per-update: 0\nmax-tokens: 1000\n", "two whole numbers above 0"),
        ("tokens-per-update: true\nmax-tokens: 1000\n", "two whole numbers above 0"),
        ("help: true\n", "not for files"),
        ("h: true\n", "not for files"),
        ("distributed-init-method: tcp://elsewhere:1\n", "not for files"),
        ("save-dir: --help\n", "not one number or word"),
        ('arch: "transformer\\n--help"\n', "not one number or word"),
        ("lr: abc\n", "argument --lr"),
        ("optimizer: adamant\n", "argument --optimizer"),
        ("max-tokens: many\n", "argument --max-tokens"),
    ],
)
def test_bad_configs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(NeuronSpecError, match=message):
        read_flags(write(tmp_path, text))


RUN = "__import__('pathlib').Path('ran').touch()"


@pytest.mark.parametrize(
    "line",
    [
        "user-dir: other",
        "user_dir: other",
        "User-Dir: other",
        "user-di: other",
        "--user-dir: other",
        "user-dir=other: true",
        "common: {user-dir: other}",
        "save-dir: --user-dir=other",
        'save-dir: "x\\n--user-dir\\nother"',
        f'lr: "{RUN}"',
        f'langtoks: "{RUN}"',
        f'sampling-weights: " {RUN}"',
        f'adam-betas: "{RUN}"',
        "lr: !!python/object/apply:os.system [touch ran]",
    ],
)
def test_a_config_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("other", "x"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text("open('ran', 'w')")
    with pytest.raises(NeuronSpecError) as caught:
        read_flags(write(tmp_path, f"{line}\n"))
    assert len(str(caught.value).splitlines()) < 8
    assert not (tmp_path / "ran").exists()


def test_negative_numbers_and_tuples_are_values(tmp_path: Path) -> None:
    path = write(
        tmp_path, "optimizer: adam\nweight-decay: -1.5e-3\nadam-betas: (0.9, 0.98)\nwandb-project: a, b\n"
    )
    assert read_flags(path)[3::2] == ["-0.0015", "(0.9, 0.98)", "a, b"]


# ------------------------------------------------------------------ tokens per update


def value_of(flags: list[str], flag: str) -> int:
    return int(flags[flags.index(flag) + 1])


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8, 16])
def test_any_number_of_gpus_gives_updates_of_the_same_size(tmp_path: Path, gpus: int) -> None:
    flags = read_flags(write(tmp_path, "tokens-per-update: 645120\nmax-tokens: 7680\n"), gpus)
    assert "--tokens-per-update" not in flags
    assert gpus * value_of(flags, "--max-tokens") * value_of(flags, "--update-freq") == 645120


def test_the_official_settings_on_their_four_gpus(tmp_path: Path) -> None:
    path = write(tmp_path, "max-tokens: 7680\ntokens-per-update: 645120\n")
    assert read_flags(path, 4) == ["--max-tokens", "7680", "--update-freq", "21"]


def test_updates_are_exact_and_their_batches_as_full_as_can_be() -> None:
    found = 0
    for tokens in (1, 960, 1000, 1009, 7200):
        for gpus in range(1, 9):
            for most in (1, 7, 60, 100, 999, 8000):
                exact = (
                    (size, tokens // (gpus * size))
                    for size in range(most // 2 + 1, most + 1)
                    if tokens % (gpus * size) == 0
                )
                best = max(exact, default=None)
                assert updates_of(tokens, gpus, most) == best, (tokens, gpus, most)
                found += best is not None
    assert 0 < found < 5 * 8 * 6


def test_an_update_size_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "tokens-per-update: 645120\nmax-tokens: 7680\n")
    with pytest.raises(ArtifactError, match="cannot be had exactly") as caught:
        read_flags(path, 11)
    assert "11 GPUs" in str(caught.value)


def test_a_config_without_it_does_not_ask_for_gpus(tmp_path: Path) -> None:
    path = write(tmp_path, "max-tokens: 1000\nupdate-freq: 2\n")
    assert read_flags(path) == read_flags(path, 4) == ["--max-tokens", "1000", "--update-freq", "2"]


# ------------------------------------------------------------------ the copy beside the checkpoints


def test_a_training_keeps_its_config(tmp_path: Path) -> None:
    path, folder = write(tmp_path, "# why\nlr: 0.1\n"), tmp_path / "run"
    keep_config(path, folder)
    assert (folder / KEPT_CONFIG).read_text() == path.read_text()
    # Before there is a checkpoint, such as after a bad value, another takes its place.
    keep_config(write(tmp_path, "lr: 0.2\n"), folder)
    (folder / "checkpoint_last.pt").touch()
    keep_config(write(tmp_path, "# said otherwise\nlr: 0.2\n"), folder)
    assert (folder / KEPT_CONFIG).read_text() == "lr: 0.2\n"


def test_checkpoints_do_not_go_on_with_another_config(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keep_config(write(tmp_path, "lr: 0.2\nseed: 1\n"), folder)
    (folder / "checkpoint_last.pt").touch()
    with pytest.raises(ArtifactError, match="made with another config") as caught:
        keep_config(write(tmp_path, "lr: 0.3\ndropout: 0.1\n"), folder)
    for part in ("lr: 0.2", "lr: 0.3", "seed: absent", "dropout: absent"):
        assert part in str(caught.value)
    assert (folder / KEPT_CONFIG).read_text() == "lr: 0.2\nseed: 1\n"


def test_what_trained_already_is_not_asked_of_fairseq_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = write(tmp_path, "lr: 0.1\nmax-tokens: 100\ntokens-per-update: 300\n")
    asked: list[object] = []
    monkeypatch.setattr("neuron_spec.backends.fairseq.commands.unknown_training_flags", asked.append)
    kept = tmp_path / "run"
    flags = read_flags(known, "all", kept=kept)
    keep_config(known, kept)
    assert read_flags(known, 1, kept=kept) == flags
    assert len(asked) == 2  # no checkpoint yet
    (kept / "checkpoint_last.pt").touch()
    assert read_flags(known, 1, kept=kept) == flags
    assert len(asked) == 2
    other = tmp_path / "other.yaml"
    other.write_text("lr: 0.1\nmax-tokens: 100\nlerning-rate: 1\n")
    read_flags(other, kept=kept)
    assert len(asked) == 3
