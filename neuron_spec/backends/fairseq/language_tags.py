"""Which target positions are the text, and which the language token that a target begins or ends with: its tag.

Decoding is given the tag, training asks for it. Where the source does not say the target language, a model that is the
same for all directions cannot know it, and one with any part of its own per direction can: a loss that holds the tag
compares the two by that one token.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.data.multilingual.multilingual_utils import LangTokSpec, LangTokStyle, get_lang_tok
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from torch import Tensor


def language_tags(task: Any) -> Tensor:
    """The language tokens that a task has added to its target dictionary, int64 ``[number]``; sorted.

    Of any of fairseq's tasks: ``__de__`` and ``[de_DE]``, by ``--lang-tok-style``, and those of ``--langtoks-specs``,
    such as ``__de_dae__``. Empty where a task knows no languages.
    """
    args, dictionary = getattr(task, "args", None), task.target_dictionary
    is_mbart = isinstance(task, TranslationFromPretrainedBARTTask)
    default = LangTokStyle.mbart if is_mbart else LangTokStyle.multilingual
    style = getattr(args, "lang_tok_style", None) or default.value
    specs = getattr(args, "langtoks_specs", None) or [LangTokSpec.main.value]
    symbols = {get_lang_tok(lang, style, spec) for lang in getattr(task, "langs", ()) for spec in specs}
    found = {dictionary.index(symbol) for symbol in symbols} - {dictionary.unk()} if symbols else set()
    return torch.tensor(sorted(found), dtype=torch.int64)


def text_positions(target: Tensor, tags: Tensor, *, padding: int) -> Tensor:
    """True where a target token is text, end of sentence included: neither padding nor a tag.

    Args:
        target: int64, of any shape, such as ``[B, T]``.
        tags: as `language_tags` finds them, on any device: fairseq's validation leaves criterions on the host.
        padding: the index of padding.

    Returns:
        bool, of the target's shape; all that is not padding where there are no tags.
    """
    return target.ne(padding) & ~torch.isin(target, tags.to(target.device))
