"""One check of resolved languages and language tokens, wherever a checkpoint is used."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pytest
from fairseq import checkpoint_utils
from fairseq.logging import progress_bar
from foreign_models import fairseq

from neuron_spec.backends.fairseq.checkpoints import read_checkpoint, starts_of, task_args, token_flags
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens
from neuron_spec.cli.main import main
from neuron_spec.errors import ArtifactError, DirectionError, ModelError
from neuron_spec.neurons.activations import ActivationCounts

ORDER = "qm,en,qa,qb"  # not sorted
PAIRS = "en-qa,qa-en,en-qm,qm-en"
SOURCE = ("--encoder-langtok", "src")
BOTH = (*SOURCE, "--decoder-langtok")


SHAPE = [
    f"--{side}-{name}={size}"
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("embed-dim", 16), ("ffn-embed-dim", 24), ("attention-heads", 2))
]


@pytest.fixture(scope="module")
def train(workshop):
    def run(
        save_dir: Path,
        *flags: object,
        task: str = "neuron_specialization",
        updates: int = 2,
        validate: bool = False,
    ) -> Path:
        fairseq(
            "train", workshop.data_bin, "--task", task, "--arch", "transformer", *SHAPE, "--share-all-embeddings",
            "--lang-pairs", PAIRS, "--save-dir", save_dir, "--max-update", updates, "--max-tokens", 300, "--cpu",
            "--criterion", "label_smoothed_cross_entropy", "--optimizer", "adam", "--lr", 0.01, "--num-workers", 0,
            "--no-epoch-checkpoints", *["--disable-validation"] * (not validate), *flags,
        )  # fmt: skip
        return save_dir / "checkpoint_last.pt"

    return run


@pytest.fixture(scope="module")
def generate(workshop):
    def run(checkpoint: Path, *flags: object) -> None:
        fairseq(
            "generate", workshop.data_bin, "--task", "neuron_specialization", "--path", checkpoint, "-s", "en",
            "-t", "qa", "--lang-pairs", PAIRS, "--cpu", "--beam", 1, "--max-len-b", 2, "--max-tokens", 500, "--quiet",
            *flags,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def languages(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("languages") / "order.txt"
    file.write_text(ORDER.replace(",", "\n") + "\n")
    return file


@pytest.fixture(scope="module")
def of_file(train, languages, tmp_path_factory) -> Path:
    """As plain fairseq trains it, with the languages in a file."""
    save_dir = tmp_path_factory.mktemp("of-file")
    return train(save_dir, "--lang-dict", languages, *BOTH, task="translation_multi_simple_epoch")


@pytest.fixture(scope="module")
def of_pairs(train, tmp_path_factory) -> Path:
    """Without --langs: their order is the sorted pairs'."""
    return train(tmp_path_factory.mktemp("of-pairs"), *BOTH, task="translation_multi_simple_epoch")


@pytest.fixture(scope="module")
def of_source(train, tmp_path_factory) -> Path:
    """Without a token for the decoder."""
    return train(tmp_path_factory.mktemp("of-source"), "--langs", ORDER, *SOURCE)


# ---------------------------------------------------------------- generating


@pytest.mark.slow
def test_languages_are_the_same_in_any_spelling(generate, of_file, of_pairs, languages, tmp_path):
    generate(of_file, "--lang-dict", languages, *BOTH)
    generate(of_file, "--langs", ORDER, *BOTH)
    generate(of_pairs, *BOTH)
    generate(of_pairs, "--langs", "en,qa,qm", *BOTH)
    generate(of_file, "--langs", ORDER, "--langtoks", "{'main': ('src', 'tgt')}")


def test_languages_of_langs_are_those_of_a_file(generate, of_source, languages):
    generate(of_source, "--lang-dict", languages, *SOURCE)


@pytest.mark.parametrize("flags", [("--langs", "en,qa,qb,qm"), ("--langs", "qm,en,qa"), ()])
def test_other_languages_than_the_file_are_refused(generate, of_file, flags):
    with pytest.raises(ModelError, match="language flags differ") as refused:
        generate(of_file, *flags, *BOTH)
    assert f"expected: --langs {ORDER}" in str(refused.value)


def test_another_order_than_the_sorted_pairs_is_refused(generate, of_pairs):
    with pytest.raises(ModelError, match="expected: --langs en,qa,qm"):
        generate(of_pairs, "--langs", "qm,en,qa", *BOTH)


@pytest.mark.parametrize(
    ("flags", "got", "expected"),
    [
        (("--decoder-langtok", *SOURCE), "--decoder-langtok", "no --decoder-langtok"),
        (("--encoder-langtok", "tgt"), "--encoder-langtok tgt", "--encoder-langtok src"),
        ((), "no --encoder-langtok", "--encoder-langtok src"),
        ((*SOURCE, "--lang-tok-style", "mbart"), "--lang-tok-style mbart", "--lang-tok-style multilingual"),
        ((*SOURCE, "--langtoks-specs", "main,mined"), "--langtoks-specs main,mined", "no --langtoks-specs"),
        (("--langtoks", "{'main': ('src', 'src')}"), "--langtoks", "no --langtoks"),
    ],
)
def test_a_flag_that_was_off_counts(generate, of_source, flags, got, expected):
    with pytest.raises(ModelError, match="language flags differ") as refused:
        generate(of_source, "--langs", ORDER, *flags)
    assert f"got:      {got}" in str(refused.value) or f"; {got}" in str(refused.value)
    assert expected in str(refused.value).split("expected:")[1]


def test_flags_that_contradict_each_other_are_refused(generate, of_source):
    with pytest.raises(ModelError, match="contradict"):
        generate(
            of_source, "--langs", ORDER, "--encoder-langtok", "tgt", "--langtoks", "{'main': ('src', None)}"
        )


def test_languages_named_twice_are_refused(generate, of_source, languages):
    with pytest.raises(ModelError, match="named twice"):
        generate(of_source, "--langs", ORDER, "--lang-dict", languages, *SOURCE)


def test_validating_with_other_languages_is_refused(workshop, of_source):
    words = (
        workshop.data_bin,
        "--task",
        "neuron_specialization",
        "--path",
        of_source,
        "--max-tokens",
        500,
        "--cpu",
    )
    fairseq("validate", *words, "--langs", ORDER)
    with pytest.raises(ModelError, match="language flags differ"):
        fairseq("validate", *words, "--langs", "en,qa,qb,qm")
    with pytest.raises(ModelError, match="contradict"):
        fairseq("validate", *words, "--encoder-langtok", "tgt")


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("how", ["--finetune-from-model", "--restore-file", "resumed"])
@pytest.mark.parametrize(
    "flags", [("--langs", "en,qa,qb,qm", *SOURCE), ("--langs", ORDER, "--encoder-langtok", "tgt")]
)
def test_training_does_not_start_with_other_tokens(train, of_source, tmp_path, how, flags):
    start = () if how == "resumed" else (how, of_source)
    folder = of_source.parent if how == "resumed" else tmp_path
    before = of_source.read_bytes()
    with pytest.raises(ModelError, match="language flags differ"):
        train(folder, *flags, *start, updates=4)
    assert of_source.read_bytes() == before and not [*tmp_path.iterdir()]


def test_codes_of_a_file_are_checked_as_those_of_langs_are(train, tmp_path):
    (tmp_path / "langs.txt").write_text("\n".join([*ORDER.split(","), "zh-Hans"]))
    for flags in (("--langs", f"{ORDER},zh-Hans"), ("--lang-dict", tmp_path / "langs.txt")):
        with pytest.raises(DirectionError, match="got:      zh-Hans"):
            train(tmp_path / "run", *flags)


def test_masks_of_other_tokens_do_not_start_either(workshop, train, of_source, tmp_path):
    from neuron_spec.backends.fairseq.checkpoints import checkpoint_sha256

    masks = workshop.masks(workshop.build(*SHAPE)[2])
    masks.metadata = {"checkpoint_sha256": checkpoint_sha256(of_source)}
    masks.save(tmp_path / "masks.safetensors")
    start = ("--finetune-from-model", of_source, "--neuron-masks", tmp_path / "masks.safetensors")
    with pytest.raises(ModelError, match="expected: --encoder-langtok src"):
        train(tmp_path / "run", "--langs", ORDER, "--encoder-langtok", "tgt", *start)
    train(tmp_path / "run", "--langs", ORDER, *SOURCE, *start, updates=1)


def test_training_goes_on_with_the_languages_in_another_spelling(train, of_file, languages, tmp_path):
    last = train(tmp_path, "--langs", ORDER, *BOTH, "--finetune-from-model", of_file)
    train(tmp_path, "--lang-dict", languages, *BOTH, "--finetune-from-model", of_file, updates=4)
    assert read_checkpoint(last)["optimizer_history"][-1]["num_updates"] == 4


def test_a_training_of_ours_keeps_its_languages_without_the_file(train, languages, tmp_path):
    moved = tmp_path / "moved.txt"
    moved.write_text(languages.read_text())
    last = train(tmp_path, "--lang-dict", moved, *BOTH)
    moved.unlink()
    for part in ("task", "model"):
        values = vars(read_checkpoint(last)["cfg"][part])
        assert (values["langs"], values["lang_dict"]) == (ORDER.split(","), None)
    train(tmp_path, "--langs", ORDER, *BOTH, updates=3)


# ---------------------------------------------------------------- our commands


@pytest.mark.parametrize("which", ["of_file", "of_pairs", "of_source"])
def test_every_checkpoint_can_be_profiled_and_evaluated(workshop, which, request, tmp_path):
    checkpoint = request.getfixturevalue(which)
    common = [str(workshop.data_bin), "--path", str(checkpoint), "--cpu", "--output"]
    assert main(["profile", *common, str(tmp_path / "p.safetensors")]) == 0
    profile = ActivationCounts.load(tmp_path / "p.safetensors")
    assert profile.metadata["langs"] == (["en", "qa", "qm"] if which == "of_pairs" else ORDER.split(","))
    few = ["--lang-pairs", "en-qa", "--beam", "1", "--", "--max-len-b", "2"]
    assert main(["evaluate", *common, str(tmp_path / "e"), *few]) == 0


def test_a_missing_file_of_languages_is_named(workshop, of_file, languages, tmp_path, capsys, generate):
    kept = languages.read_text()
    command = ["profile", str(workshop.data_bin), "--path", str(of_file), "--cpu", "--output"]
    beside = of_file.with_name(languages.name)
    languages.unlink()
    try:
        assert main([*command, str(tmp_path / "p.safetensors")]) == 2
        message = capsys.readouterr().err
        assert str(languages) in message and str(beside) in message
        with pytest.raises(ArtifactError, match="a file that is not there"):
            generate(of_file, "--langs", ORDER, *BOTH)
        beside.write_text(kept)
        assert main([*command, str(tmp_path / "p.safetensors")]) == 0
        generate(of_file, "--langs", ORDER, *BOTH)
    finally:
        languages.write_text(kept)
        beside.unlink(missing_ok=True)


def test_flags_for_other_commands_resolve_to_the_same(of_file, of_pairs, of_source):
    from fairseq import options

    for path in (of_file, of_pairs, of_source):
        trained = task_args(read_checkpoint(path), path)
        words = ["data", "--task", "neuron_specialization", "--lang-pairs", "en-qa", *token_flags(trained)]
        now = options.parse_args_and_arch(options.get_generation_parser(), input_args=words)
        assert LanguageTokens.of(now) == LanguageTokens.of(trained)


# ---------------------------------------------------------------- properties

SPELLINGS = {
    "langs": {"langs": ["b", "a"], "lang_pairs": "a-b"},
    "text": {"langs": "b,a", "lang_pairs": "a-b,b-a"},
    "sorted": {"langs": ["a", "b"]},
    "pairs": {"lang_pairs": ["b-a", "a-b"], "langs": None, "lang_dict": None},
    "more": {"langs": ["b", "a", "c"]},
    "decoder": {"langs": ["b", "a"], "decoder_langtok": True},
    "encoder": {"langs": ["b", "a"], "encoder_langtok": "src", "lang_tok_style": "multilingual"},
    "langtoks": {"langs": ["b", "a"], "langtoks": {"main": ("src", None)}, "langtoks_specs": ["main"]},
    "listed": {"langs": ["b", "a"], "langtoks": {"main": ["src", None]}, "langtoks_specs": "main"},
    "style": {"langs": ["b", "a"], "lang_tok_style": "mbart"},
    "kinds": {"langs": ["b", "a"], "langtoks_specs": ["main", "mined"]},
    "odd": {"langs": ["b", "a"], "langtoks": {"main": ("src.mined", "tgt")}},
    "replacing": {"langs": ["b", "a"], "lang_tok_replacing_bos_eos": True},
}
SAME = [{"langs", "text"}, {"sorted", "pairs"}, {"encoder", "langtoks", "listed"}]


@pytest.mark.parametrize(("one", "other"), itertools.product(SPELLINGS, repeat=2))
def test_the_check_is_symmetric_and_knows_what_is_the_same(one, other):
    a, b = LanguageTokens.of(SPELLINGS[one]), LanguageTokens.of(argparse.Namespace(**SPELLINGS[other]))
    is_same = one == other or any({one, other} <= names for names in SAME)
    assert a.differences(b) == {name: (y, x) for name, (x, y) in b.differences(a).items()}
    assert bool(a.differences(b)) != is_same and (a == b) == is_same
    for before, now in ((a, b), (b, a)):
        if is_same:
            now.require(before)
        else:
            with pytest.raises(ModelError):
                now.require(before)


def test_where_a_run_starts_is_where_fairseq_looks(tmp_path):
    dense, other = tmp_path / "dense.pt", tmp_path / "other.pt"
    for path in (dense, other):
        path.touch()
    blank = {
        "restore_file": "checkpoint_last.pt",
        "save_dir": str(tmp_path / "run"),
        "finetune_from_model": None,
    }

    def starts(**flags: object) -> list[Path]:
        return starts_of(argparse.Namespace(**{**blank, **flags}))

    assert starts() == [] == starts(restore_file=str(tmp_path / "typo.pt"))
    assert starts(finetune_from_model=str(dense)) == [dense]
    assert starts(restore_file=str(other)) == [other]
    assert starts(path=f"{dense}:{other}") == [dense, other]
    (tmp_path / "run").mkdir()
    last = tmp_path / "run" / "checkpoint_last.pt"
    last.touch()
    assert starts(finetune_from_model=str(dense)) == [last] == starts()


# ---------------------------------------------------------------- masks need weights that were trained


def test_masks_do_not_go_onto_random_weights_unless_asked(workshop, train, of_source, tmp_path):
    flags = ("--langs", ORDER, *SOURCE, "--neuron-masks", tmp_path / "masks.safetensors")
    masks = workshop.masks(workshop.build(*SHAPE)[2])
    for metadata in ({}, {"checkpoint_sha256": "ab" * 32}):  # of unknown origin, and of another checkpoint
        masks.metadata = metadata
        masks.save(tmp_path / "masks.safetensors")
        for typo in ((), ("--restore-file", tmp_path / "typo.pt")):
            with pytest.raises(ModelError, match="the masks would go onto random weights"):
                train(tmp_path / "run", *flags, *typo)
    assert not (tmp_path / "run" / "checkpoint_last.pt").exists()
    train(tmp_path / "run", *flags, "--masks-on-random-weights", updates=1)
    train(tmp_path / "run", *flags, updates=2)  # it resumes


def test_another_training_in_the_folder_is_neither_resumed_nor_written_over(train, of_source, tmp_path):
    dense = train(tmp_path, "--langs", ORDER, *SOURCE, task="translation_multi_simple_epoch")
    before = dense.read_bytes()
    flags = ("--langs", ORDER, *SOURCE, "--finetune-from-model", of_source)
    for given in (flags, (*flags[:-1], dense)):  # to begin from another checkpoint, or from this one
        with pytest.raises(
            ModelError, match="got:      a checkpoint of --task translation_multi_simple_epoch"
        ):
            train(tmp_path, *given, updates=4)
    assert dense.read_bytes() == before
    dense.unlink()
    train(tmp_path, *flags)
    for updates, again in ((3, flags), (4, flags[:4]), (5, flags)):  # it resumes, with the flag and without
        state = read_checkpoint(train(tmp_path, *again, updates=updates))
        assert state["optimizer_history"][-1]["num_updates"] == updates


# ---------------------------------------------------------------- a metric that is logged


def test_a_best_metric_that_nobody_logs_is_refused_before_training(train, tmp_path):
    flags = ("--langs", ORDER, *SOURCE, "--best-checkpoint-metric", "bleu", "--valid-subset", "valid")
    with pytest.raises(ModelError, match="loss, nll_loss, ppl") as refused:
        train(tmp_path, *flags, validate=True)
    assert "--best-checkpoint-metric bleu" in str(refused.value) and not [*tmp_path.iterdir()]
    train(tmp_path, *flags, updates=1)  # nothing is validated


@pytest.mark.parametrize(
    ("flag", "package", "extra"),
    [
        (("--tensorboard-logdir", "logs"), "SummaryWriter", "neuron_spec[tracking]"),
        (("--wandb-project", "mine"), "wandb", "neuron_spec[tracking]"),
        (("--azureml-logging",), "Run", "azureml-core"),
    ],
)
def test_logs_that_nobody_would_keep_are_refused_before_training(
    train, tmp_path, monkeypatch, flag, package, extra
):
    monkeypatch.setattr(progress_bar, package, None)
    with pytest.raises(ModelError, match="cannot be heeded") as refused:
        train(tmp_path, "--langs", ORDER, *SOURCE, *flag)
    assert f"got:      {flag[0]}" in str(refused.value) and extra in str(refused.value)
    assert not [*tmp_path.iterdir()]


def test_logs_are_kept_where_their_package_is(train, tmp_path, monkeypatch):
    kept = []

    class Writer:
        def __init__(self, folder):
            kept.append(folder)

        def __getattr__(self, name):
            return lambda *_: None

    monkeypatch.setattr(progress_bar, "SummaryWriter", Writer)
    train(
        tmp_path / "run", "--langs", ORDER, *SOURCE, "--tensorboard-logdir", str(tmp_path / "logs"), updates=1
    )
    assert kept and all(folder.startswith(str(tmp_path / "logs")) for folder in kept)
    # It is a flag of training: what was trained with it is run without.
    monkeypatch.setattr(progress_bar, "SummaryWriter", None)
    checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "run" / "checkpoint_last.pt")])


OF_TEXT = ("--criterion", "label_smoothed_cross_entropy_text")


@pytest.mark.parametrize(
    ("metric", "flags"),
    [
        ("ppl", ()),
        ("nll_loss", ()),
        ("accuracy", ("--report-accuracy",)),
        ("text_nll_loss", OF_TEXT),
        ("accuracy", (*OF_TEXT, "--report-accuracy")),
    ],
)
def test_training_goes_by_a_metric_that_is_logged(train, tmp_path, metric, flags):
    flags = ("--langs", ORDER, *SOURCE, "--best-checkpoint-metric", metric, *flags)
    train(tmp_path, *flags, updates=1, validate=True)
    assert (tmp_path / "checkpoint_best.pt").is_file()


def test_a_criterion_may_say_what_it_logs():
    from neuron_spec.backends.fairseq.logged import logged_metrics, require_logged

    class Named:
        logged_metrics = ("loss", "text_nll_loss")

    class Strange:
        @classmethod
        def reduce_metrics(cls, logs):
            raise KeyError(logs[0]["frames"])

    args = argparse.Namespace(best_checkpoint_metric="text_nll_loss", criterion="named")
    require_logged(Named(), args)
    assert logged_metrics(Strange()) is None
    require_logged(Strange(), args)  # cannot be known
    args.best_checkpoint_metric = "bleu"
    with pytest.raises(ModelError, match="loss, text_nll_loss"):
        require_logged(Named(), args)
