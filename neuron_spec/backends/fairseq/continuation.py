"""Training that goes on from a checkpoint: the flags of ``fairseq-train`` that the checkpoint knows.

What it is (architecture, sizes, languages, tokens, dictionaries, longest text) cannot be changed. How it was trained
(criterion, optimizer, learning rate, batches, sampling, dropout) is gone on with, unless flags say otherwise; so the
line names no more than what differs from fairseq's defaults. How long is not in it: what is right from the start is
not from there on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fairseq import options
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY

from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.checkpoints import DICTIONARIES, flag_name, flags_of, token_flags
from neuron_spec.backends.fairseq.commands import parsed
from neuron_spec.backends.fairseq.language_tokens import LanguageTokens
from neuron_spec.errors import ModelError
from neuron_spec.models.neuron_spec_transformer import PLAIN, NeuronSpecTransformer
from neuron_spec.neurons.choices import SIDES
from neuron_spec.tasks.neuron_profiling import NeuronProfilingTask
from neuron_spec.tasks.neuron_specialization import NeuronSpecializationTask

COMMAND = "fairseq-train"
# How a model is trained, by attribute; that of a chosen criterion, optimizer and schedule comes with it.
_COMPONENTS = ("criterion", "optimizer", "lr_scheduler")
_TRAINING = {
    *("lr", "update_freq", "clip_norm", "sentence_avg", "max_tokens", "batch_size", "seed"),
    *("sampling_method", "sampling_temperature", "virtual_epoch_size", "virtual_data_size"),
    *("left_pad_source", "left_pad_target", "truncate_source", "skip_invalid_size_inputs_valid_test"),
}
_BEST = {"best_checkpoint_metric", "maximize_best_checkpoint_metric"}
_PRECISION = {"fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16"}
# Of the model's flags those that may differ from one training to the next; with ours, which a dense one does not have.
_OF_THE_TRAINING = {
    *("dropout", "attention_dropout", "activation_dropout", "relu_dropout", "adaptive_softmax_dropout"),
    *("encoder_layerdrop", "decoder_layerdrop", "checkpoint_activations", "offload_activations"),
    *("min_params_to_wrap", "dropped_neurons", "frozen_weights", "ffn_path"),
}
_FILES = {
    "encoder_embed_path",
    "decoder_embed_path",
}  # from which embeddings began; they are in the checkpoint now
_LONGEST = {"max_source_positions", "max_target_positions"}
_TOKENS = {
    *(
        "langs",
        "lang_dict",
        "encoder_langtok",
        "decoder_langtok",
        "langtoks",
        "lang_tok_style",
        "langtoks_specs",
    ),
    "lang_tok_replacing_bos_eos",
}
_BEFORE = {
    **{"neuron_masks": "--masks", "lang_pairs": "--lang-pairs", "save_dir": "--save-dir"},
    **dict.fromkeys(("finetune_from_model", "restore_file", "continue_once"), "--path"),
}
_LENGTH = ("max_update", "max_epoch", "stop_time_hours")
_PLAIN_CRITERION, _TEXT_CRITERION = "label_smoothed_cross_entropy", "label_smoothed_cross_entropy_text"


def continued_flags(asked: Asked, given: Sequence[str]) -> tuple[list[str], argparse.Namespace]:
    """The flags with which ``fairseq-train`` goes on from a checkpoint, its data and directions apart.

    Args:
        given: flags of ``fairseq-train``, which win.

    Returns:
        The flags, and what they say together.

    Raises:
        ModelError: if the flags given contradict the checkpoint, are unknown, or do not say how long to train; or if the
            checkpoint is of no transformer.
    """
    path, trained = asked.path, flags_of(asked.state, "task") | flags_of(asked.state, "model")
    line = _Line(trained, ["data", "--lang-pairs", ",".join(asked.names)], given)
    line.choose("task", "neuron_specialization")
    line.choose("arch", _architecture(trained, path))
    for name in _COMPONENTS:
        choice = trained.get(name)
        line.choose(name, _TEXT_CRITERION if choice == _PLAIN_CRITERION else choice)
    now, named = line.parse()
    _require_training(now, named, path)

    of_model = line.names_of_model()
    sizes = of_model - _OF_THE_TRAINING - _FILES - _LONGEST
    line.take(sizes | _LONGEST)
    theirs = {*named, *({"langs"} if "lang_dict" in named else ())}
    line.add(_without(token_flags(asked.trained), theirs, _TOKENS | {*DICTIONARIES}))
    line.take(of_model & _OF_THE_TRAINING)
    is_text = now.criterion == _TEXT_CRITERION
    same = {name for name in _COMPONENTS if getattr(now, name) == trained.get(name)}
    same |= {"criterion"} if is_text else set()
    line.take(_TRAINING | {name for of in same for name in _names_of_component(of, getattr(now, of))})
    if "criterion" in same:
        line.take(_BEST)
    if is_text and trained.get("best_checkpoint_metric") in (None, "loss", "nll_loss"):
        line.set("best_checkpoint_metric", "text_nll_loss")
    if not now.cpu:
        line.take(_PRECISION)
    if now.lr_scheduler == "polynomial_decay" and "total_num_update" not in named:
        if not now.max_update:
            raise ModelError("a learning rate that decays to the end needs it", mend="give --max-update N")
        line.set("total_num_update", now.max_update)

    now, named = line.parse()
    has_table = any(trained.get(f"{side}_learned_pos") for side in SIDES)
    wrong = {
        name
        for name in sizes | (_LONGEST if has_table else set())
        if name in trained
        and (name in named or trained[name] is not None)  # what was unset then may have a default now
        and _plain(trained[name]) != _plain(getattr(now, name, None))
    }
    if wrong:
        here, there = (
            ", ".join(_said(name, values.get(name)) for name in sorted(wrong))
            for values in (vars(now), trained)
        )
        _contradiction(path, here, there)
    LanguageTokens.of(now).require(LanguageTokens.of(asked.trained), where=path)
    warmup = getattr(now, "warmup_updates", 0)
    is_named = "warmup_updates" in named  # it may end with the training
    if 0 < now.max_update < warmup + (not is_named):
        whence = "" if is_named else " as the checkpoint was trained"
        raise ModelError(
            "training would end before the learning rate is reached",
            where=path,
            got=f"--max-update {now.max_update}, and --warmup-updates {warmup}{whence}",
            mend="give fewer --warmup-updates, and the --lr that is meant",
        )
    return line.words, now


def _require_training(now: argparse.Namespace, named: dict[str, Any], path: object) -> None:
    """That it is a training of ours, of some length, and that its flags do not name what the command's own do."""
    task = TASK_REGISTRY[now.task]
    if not issubclass(task, NeuronSpecializationTask) or issubclass(task, NeuronProfilingTask):
        _contradiction(path, f"--task {now.task}", "neuron_specialization, or a task that is made of it")
    if before := {name: flag for name, flag in _BEFORE.items() if name in named}:
        raise ModelError(
            "flags that neuron-spec specialize has itself, or reads from --path",
            got=", ".join(map(flag_name, before)),
            mend=f"give {', '.join(sorted({*before.values()}))} before the --",
        )
    if not any(named.get(name) for name in _LENGTH):
        raise ModelError(
            "how long shall it train? The checkpoint knows only how long it was trained",
            mend="give --max-update N, or --max-epoch N, in --config or after --",
        )


def _architecture(trained: dict[str, Any], path: object) -> str:
    model = ARCH_MODEL_REGISTRY.get(arch := trained.get("arch"))
    if model in (*PLAIN, NeuronSpecTransformer):
        return "neuron_spec_transformer"  # with all sizes as flags
    if model is None or not issubclass(model, NeuronSpecTransformer):
        raise ModelError(
            "this checkpoint is of no model that can be specialized",
            where=path,
            got=f"--arch {arch}",
            expected="one of fairseq's transformers, mBART among them, or of neuron_spec_transformer",
        )
    return str(arch)


def _contradiction(path: object, got: str, expected: str) -> None:
    raise ModelError(
        "flags contradict the checkpoint",
        where=path,
        got=got,
        expected=expected,
        mend="leave them out: they are read from the checkpoint",
    )


class _Line:
    """A command line in the making.

    Attributes:
        words: what was added to it, without what is given by the user.
    """

    def __init__(self, trained: dict[str, Any], data: Sequence[str], given: Sequence[str]) -> None:
        self._trained, self._data, self._given = trained, data, given
        self.words: list[str] = []
        self._parser = argparse.ArgumentParser()
        self._chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)

    def choose(self, name: str, choice: str | None) -> None:
        """A task, architecture and the like, unless one is given."""
        self._chosen.add_argument(flag_name(name))
        if choice and getattr(self._chosen.parse_known_args(self._given)[0], name) is None:
            self.add([flag_name(name), choice])

    def add(self, words: Iterable[str]) -> None:
        self.words += words

    def parse(self) -> tuple[argparse.Namespace, dict[str, Any]]:
        """What the line says, and what of it the user."""
        self._parser = options.get_training_parser()
        return parsed(self._parser, [*self._data, *self.words], self._given, COMMAND)

    def names_of_model(self) -> set[str]:
        """The attributes of the model's flags."""
        (group,) = (of for of in self._parser._action_groups if of.title == "Model-specific configuration")
        return {action.dest for action in group._group_actions}

    def take(self, names: set[str]) -> None:
        """Add the checkpoint's values of these attributes, where the line says otherwise and the user nothing."""
        for is_typed in (True, False):  # what has no type follows from the others by default
            now, named = self.parse()
            for action in self._parser._actions:
                value = self._trained.get(action.dest)
                is_now = is_typed == (action.type is not None or action.nargs == 0)
                is_meant = is_now and value is not None and action.dest in names - {*named}
                if is_meant and _plain(value) != _plain(getattr(now, action.dest, None)):
                    self.add(_words(action, value))

    def set(self, name: str, value: object) -> None:
        """Say this of an attribute, unless the user does."""
        _, named = self.parse()
        if name not in named:
            flag = flag_name(name)
            if flag in self.words:
                place = self.words.index(flag)
                del self.words[place : place + 2]
            self.add([flag, str(value)])


def _words(action: argparse.Action, value: Any) -> list[str]:
    """A flag with a value; none where it has no such value."""
    flag = next(option for option in action.option_strings if option.startswith("--"))
    if action.nargs == 0:
        return [flag] if value == action.const else []
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return [flag, text] if action.choices is None or text in action.choices else []


def _said(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"{'' if value else 'no '}{flag_name(name)}"
    return f"{flag_name(name)} {value}"


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, list | tuple) else value


def _without(flags: Sequence[str], names: set[str], among: set[str]) -> list[str]:
    """Flags without those of these attributes, and their values."""
    kept: list[str] = []
    is_left_out = False
    for word in flags:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            is_left_out = name in names or name not in among
        kept += [] if is_left_out else [word]
    return kept


def _names_of_component(name: str, choice: str | None) -> set[str]:
    """The attributes of the flags that a criterion, optimizer or schedule has."""
    component = REGISTRIES[name]["registry"].get(choice)
    parser = argparse.ArgumentParser(add_help=False)
    add: Callable[[argparse.ArgumentParser], None] | None = getattr(component, "add_args", None)
    if add is not None:
        add(parser)
    elif (of := getattr(component, "__dataclass", None)) is not None:
        gen_parser_from_dataclass(parser, of())
    return {action.dest for action in parser._actions}
