"""Translating whole test sets, many directions with one model load."""

from __future__ import annotations

import ast
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import options, tasks, utils
from fairseq.data import BaseWrapperDataset, data_utils
from tqdm import tqdm

from neuron_spec.backends.fairseq.asked import Asked
from neuron_spec.backends.fairseq.checkpoints import load_model, token_flags
from neuron_spec.backends.fairseq.commands import fixed_dictionary_in, generation_config, parsed, refuse
from neuron_spec.backends.fairseq.data_bin import folder_with, joining_of, require_dictionaries, shards_of
from neuron_spec.directions import Direction
from neuron_spec.errors import ModelError
from neuron_spec.export.folder import Hypothesis

_COMMAND = "fairseq-generate"
# Flags of fairseq-generate that translating heeds, by attribute, and those that our commands have themselves.
OURS = {"beam", "max_tokens", "cpu"}
HEEDED = {
    *(
        "max_len_a",
        "max_len_b",
        "min_len",
        "match_source_len",
        "unnormalized",
        "lenpen",
        "unkpen",
        "temperature",
    ),
    *("no_repeat_ngram_size", "prefix_size", "sampling", "sampling_topk", "sampling_topp"),
    *(
        "diverse_beam_groups",
        "diverse_beam_strength",
        "diversity_rate",
        "retain_dropout",
        "retain_dropout_modules",
    ),
    *(
        "seed",
        "fp16",
        "bf16",
        "batch_size",
        "skip_invalid_size_inputs_valid_test",
        "post_process",
        "model_overrides",
    ),
    *("max_source_positions", "max_target_positions", "truncate_source", "fixed_dictionary"),
    *("neuron_masks", "neuron_sets", "missing_direction", "allow_other_checkpoint"),
}
_BEFORE = "the command has a flag for it: give it before the --"
_ONE_BEST = "leave it out: the best hypothesis of each sentence is scored, and kept below hypotheses/"
_LANGUAGES = "leave it out: language flags are read from the checkpoint"
_BY_LOG = "run fairseq-generate with it, and score its log with neuron-spec evaluate --generate-output"
_INSTEAD = {
    **dict.fromkeys(OURS | {"path", "gen_subset", "lang_pairs"}, _BEFORE),
    **dict.fromkeys(("source_lang", "target_lang"), "name directions with --lang-pairs before the --"),
    **dict.fromkeys(("quiet", "nbest", "results_path", "print_alignment", "print_step"), _ONE_BEST),
    **dict.fromkeys(
        ("langs", "lang_dict", "encoder_langtok", "decoder_langtok", "lang_tok_style"), _LANGUAGES
    ),
    **dict.fromkeys(("langtoks", "langtoks_specs", "lang_tok_replacing_bos_eos"), _LANGUAGES),
    **dict.fromkeys(
        ("num_shards", "shard_id", "distributed_world_size", "distributed_rank"),
        "share the work out by directions: --lang-pairs before the --, and an --output each",
    ),
    **dict.fromkeys(("sacrebleu", "scoring"), "leave it out: scores are sacreBLEU's"),
    **dict.fromkeys(("lm_path", "lm_weight", "replace_unk", "bpe", "tokenizer"), _BY_LOG),
    "fixed_dictionary": "put that file beside the checkpoint, under the name by which it was trained",
    "constraints": "leave it out: fairseq's multilingual task has no constrained decoding",
    "score_reference": "run fairseq-generate with it: it measures references, and translates nothing",
    "task": "leave it out: the task is neuron_specialization",
}


def require_heeded(flags: Sequence[str], but: set[str] = OURS) -> None:
    """That translating heeds each of these flags of ``fairseq-generate``.

    Args:
        but: attributes of flags that are refused, as the command that is called has them itself.

    Raises:
        ModelError: if it does not, or fairseq does not know one or its value.
    """
    # Some do something when they are parsed: print help and end, or run code.
    named = {"help"} & {*("help" for flag in flags if flag in ("-h", "--help"))}
    named |= {"user_dir"} & {*("user_dir" for flag in flags if flag.partition("=")[0] == "--user-dir")}
    if not named:
        words = ["data", "--task", "neuron_specialization", "--lang-pairs", "a-b"]
        named = {*parsed(options.get_generation_parser(), words, flags, _COMMAND)[1]}
    if refused := sorted((named - (HEEDED | OURS)) | (named & but)):
        raise ModelError(
            "flags of fairseq-generate that translating here would ignore",
            got=", ".join(f"--{name.replace('_', '-')}" for name in refused),
            mend="; ".join(dict.fromkeys(_INSTEAD.get(name, _BY_LOG) for name in refused)),
        )


class Translator:
    """A checkpoint ready to translate any of its directions, as ``fairseq-generate`` would.

    Language flags are read from the checkpoint.

    Attributes:
        symbols: of its source dictionary, language tokens among them.
    """

    def __init__(
        self,
        path: Path,
        data_bin: Path,
        directions: Sequence[Direction],
        subset: str | None,
        flags: Sequence[str],
        *,
        asked: Asked | None = None,
    ) -> None:
        """Check everything, then load the model once.

        Args:
            subset: whose text is translated; None: sentences that are given, for which dictionaries alone are read.
            flags: further flags of ``fairseq-generate``, such as ``--beam 5``, of those that `require_heeded` knows.
                Unlike that command this one heeds ``--bf16``.
            asked: the checkpoint and directions, where they have been read already.

        Raises:
            ArtifactError: if the checkpoint or a data file is missing or damaged.
            DirectionError: if the checkpoint does not know a language.
            ModelError: if the flags name two precisions, or one that would be ignored, or if the dictionary does not
                tell how its pieces are joined.
        """
        if {"--fp16", "--bf16"} <= set(flags):
            raise ModelError("two precisions", got="--fp16 and --bf16", mend="give one of the two, or none")
        require_heeded(flags, but=set())
        dictionary = fixed_dictionary_in(flags)
        subsets = [subset] if subset else []
        if asked is None:
            asked = Asked.read(path, data_bin, *subsets, lang_pairs=directions, fixed_dictionary=dictionary)
        self.subset = subset or ""
        folder = folder_with(data_bin, subset) if subset else (shards_of(data_bin) or [data_bin])[0]
        require_dictionaries(folder, directions, asked.trained.fixed_dictionary)
        self.cfg = generation_config(
            path,
            folder,
            directions,
            token_flags(asked.trained),
            *("--source-lang", directions[0].source, "--target-lang", directions[0].target),
            *(["--gen-subset", subset] if subset else []),
            *("--skip-invalid-size-inputs-valid-test", *flags),
        )
        common = self.cfg.common
        dtype = torch.float16 if common.fp16 else torch.bfloat16 if common.bf16 else torch.float32
        self._cuda = torch.cuda.is_available() and not common.cpu
        task = self._task(directions[0])
        self.symbols: list[str] = task.source_dictionary.symbols
        if subset:  # given pieces are put together by whoever gives them
            self._joining = _joining(
                self.cfg.common_eval.post_process, task.target_dictionary, self.cfg.task.data
            )
        self.overrides = _overrides(self.cfg.common_eval.model_overrides)
        self.models = [load_model(path, task, self.overrides)[0]]
        for model in self.models:
            model.prepare_for_inference_(self.cfg)
            model.to(dtype)
            if self._cuda:
                model.cuda()

    def _task(self, direction: Direction) -> Any:
        args = copy.deepcopy(self.cfg.task)
        args.source_lang, args.target_lang = direction.source, direction.target
        return tasks.setup_task(args)

    def translate(self, direction: Direction) -> list[str]:
        """The best hypotheses for a direction's test set, in its order, pieces joined to words.

        A sentence longer than the model's positions has an empty hypothesis. ``--seed`` (1 unless given) is set anew
        for each direction, so that what is sampled does not depend on the directions before.
        """
        return [texts[0] if texts else "" for texts in self._searched(direction, lambda beams: beams[:1])]

    def translate_by_lenpen(
        self, direction: Direction, lenpens: Sequence[float], positions: Sequence[int]
    ) -> list[list[str]]:
        """The best hypotheses of some sentences with each ``--lenpen``, from one search ``[lenpens][positions]``.

        What beam search finds does not depend on the length penalty, only which of it is best: fairseq divides a finished
        hypothesis's log-likelihood by a power of its length, and ends when as many are finished as the beam is wide.
        The translator must have been given ``--lenpen 0``, with which scores are not divided.
        """

        def best(beams: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
            return [max(beams, key=lambda one: one["score"] / len(one["tokens"]) ** x) for x in lenpens]

        texts = self._searched(direction, best, positions)
        chosen = [texts[position] or [""] * len(lenpens) for position in positions]
        return [list(of_lenpen) for of_lenpen in zip(*chosen, strict=True)]

    def _searched(
        self,
        direction: Direction,
        choose: Callable[[Sequence[dict[str, Any]]], Sequence[dict[str, Any]]],
        positions: Sequence[int] | None = None,
    ) -> list[list[str]]:
        """Of each sentence of the set the hypotheses chosen from those found; none where it was not translated."""
        task = self._task(direction)
        task.load_dataset(self.subset)
        dataset = task.dataset(self.subset)
        hypotheses: list[list[str]] = [[] for _ in range(len(dataset))]
        total = len(dataset if positions is None else positions)
        if positions is not None:
            dataset = _Sample(dataset, positions)
        for number, beams, strip in self._beams(task, dataset, f"translate {direction}", total):
            hypotheses[number] = [self._text(one["tokens"], task, strip) for one in choose(beams)]
        return hypotheses

    def translate_pieces(self, direction: Direction, sentences: Sequence[Sequence[str]]) -> list[Hypothesis]:
        """The best hypothesis of each sentence, none of which is longer than `max_source_tokens`.

        Args:
            sentences: pieces, without language token and end of sentence.
        """
        task = self._task(direction)
        dictionary = task.source_dictionary
        tokens = [
            torch.tensor([*map(dictionary.index, pieces), dictionary.eos()], dtype=torch.int64)
            for pieces in sentences
        ]
        dataset = task.build_dataset_for_inference(tokens, np.array([*map(len, tokens)]))
        # A batch has one sentence at least; fairseq would not take one that is longer than its limit.
        longest = max(map(dataset.num_tokens, range(len(dataset))), default=0)
        self.cfg.dataset.max_tokens = max(self.cfg.dataset.max_tokens, int(longest))
        best: list[Hypothesis] = [Hypothesis([], None)] * len(tokens)
        for number, beams, strip in self._beams(task, dataset, f"translate {direction}", len(tokens)):
            kept = [token for token in beams[0]["tokens"].tolist() if token not in strip]
            text = [task.target_dictionary[token] for token in kept]
            best[number] = Hypothesis(text, float(beams[0]["score"]))
        return best

    def max_source_tokens(self, direction: Direction) -> int:
        """How many pieces a source may have."""
        task = self._task(direction)
        longest, _ = self._max_positions(task)
        return int(longest) - 1 - bool(task.args.langtoks["main"][0])

    def _max_positions(self, task: Any) -> Any:
        of_models = (model.max_positions() for model in self.models)
        return utils.resolve_max_positions(task.max_positions(), *of_models)

    def _beams(
        self, task: Any, dataset: Any, what: str, total: int
    ) -> Iterator[tuple[int, list[dict[str, Any]], set[int]]]:
        """Of each sentence its number, what is found, best first, and the symbols that are no text."""
        np.random.seed(self.cfg.common.seed)
        utils.set_torch_seed(self.cfg.common.seed)
        generator = task.build_generator(self.models, self.cfg.generation)
        batches = task.get_batch_iterator(
            dataset,
            max_tokens=self.cfg.dataset.max_tokens,
            max_sentences=self.cfg.dataset.batch_size,
            max_positions=self._max_positions(task),
            ignore_invalid_inputs=True,
        ).next_epoch_itr(shuffle=False)
        strip = {generator.eos, *getattr(generator, "symbols_to_strip_from_output", ())}
        prefix = self.cfg.generation.prefix_size
        with tqdm(total=total, desc=what, unit="sent", file=sys.stderr) as bar:
            for batch in batches:
                batch = utils.move_to_cuda(batch) if self._cuda else batch
                # As fairseq-generate takes it: of the target, whose first token is the language's.
                begun = {"prefix_tokens": batch["target"][:, :prefix]} if prefix > 0 else {}
                found = task.inference_step(generator, self.models, batch, **begun)
                for number, beams in zip(batch["id"].tolist(), found, strict=True):
                    yield number, beams, strip
                bar.update(len(batch["id"]))

    def references(self, direction: Direction) -> list[str]:
        """The data-bin's own targets, pieces joined to words.

        Unknown pieces are ``<<unk>>``, as fairseq prints them, so that no hypothesis's ``<unk>`` is right.
        """
        task = self._task(direction)
        task.load_dataset(self.subset)
        dataset = task.dataset(self.subset)
        _, specification = task.args.langtoks["main"]
        language_token = task.data_manager.get_decoder_langtok(direction.target, specification)
        strip = {task.target_dictionary.eos(), language_token} - {None}
        targets = (dataset[i]["target"] for i in range(len(dataset)))
        return [self._text(target, task, strip, escape_unk=True) for target in targets]

    def _text(self, tokens: torch.Tensor, task: Any, strip: set[int], escape_unk: bool = False) -> str:
        text: str = task.target_dictionary.string(
            tokens.int().cpu(), self._joining, escape_unk=escape_unk, extra_symbols_to_ignore=strip
        )
        return text


def _joining(asked: str | None, dictionary: Any, where: object) -> str:
    """fairseq's name for how pieces are joined: as ``--post-process`` says, else as the dictionary's symbols tell."""
    if asked is None:
        return joining_of(dictionary.symbols[dictionary.nspecial :], where)
    try:
        data_utils.post_process("", asked)
    except NotImplementedError:
        refuse(f"--post-process {asked}", _COMMAND)
    return asked


def _overrides(text: str) -> dict[str, Any]:
    try:
        overrides = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        overrides = None
    if not isinstance(overrides, dict):
        raise ModelError(
            "--model-overrides is no Python dictionary",
            got=text,
            expected="such as {'dropped_neurons': 'zero'}",
        )
    return overrides


class _Sample(BaseWrapperDataset):
    """Some sentences of a set, which keep their numbers."""

    def __init__(self, dataset: Any, positions: Sequence[int]) -> None:
        super().__init__(dataset)
        self._positions = np.asarray(positions)

    def ordered_indices(self) -> np.ndarray:
        order = np.asarray(self.dataset.ordered_indices())
        return order[np.isin(order, self._positions)]
