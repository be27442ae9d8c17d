"""Models and tokenizers of transformers from a folder or by name, and models with their masks and deltas in a folder.

A folder of ours is what ``save_pretrained`` writes, the plain model, and beside it masks, deltas and a model card.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from neuron_spec.artifacts import atomic_path, write_text
from neuron_spec.backends.huggingface.specialization import (
    require_finite,
    require_specialization,
    specialize,
    weights_sha256,
)
from neuron_spec.backends.huggingface.text import HUB_PIECES, pieces_model
from neuron_spec.errors import ArtifactError, ModelError, NeuronSpecError, some
from neuron_spec.forms import number, require_form
from neuron_spec.neurons.counting import DTYPES
from neuron_spec.neurons.masks import NeuronMasks

MASKS = "neuron_masks.safetensors"
CARD = "README.md"
_SAVED = "saved_with"  # in the masks' metadata


def require_transformers() -> None:
    """Raises: NeuronSpecError if the library is not installed, which is an extra."""
    if importlib.util.find_spec("transformers") is None:
        raise NeuronSpecError(
            "transformers is not installed",
            mend="pip install 'neuron_spec[huggingface]'",
        )


def _place(name: str | os.PathLike[str]) -> Path:
    """Raises: ArtifactError if this names nothing."""
    if not isinstance(name, str | os.PathLike):
        raise ArtifactError(
            "not the folder or name of a model", got=repr(name)[:80], expected="a string or Path"
        )
    return Path(name)


def _from_pretrained(kind: str, name: str | os.PathLike[str], **options: Any) -> Any:
    require_transformers()
    import transformers

    loud = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what it would report of sizes and weights is refused here, in one message
    # Unset, transformers would ask on standard input, which may hold the text to translate.
    try:
        return getattr(transformers, kind).from_pretrained(str(name), **options, trust_remote_code=False)
    except Exception as error:  # of a folder without a model, of another kind of one, of foreign bytes, any
        raise ArtifactError(
            "transformers cannot load it",
            where=name,
            # torch's own text for pickles would have the reader turn weights_only off.
            got="weights in a pickle that holds more than tensors, or is damaged"
            if isinstance(error, pickle.UnpicklingError)
            else (str(error).strip() or repr(error)).splitlines()[0][:300],
            expected="the folder or name of an encoder-decoder and its tokenizer",
        ) from error
    finally:
        transformers.logging.set_verbosity(loud)


# Of configurations, as M2M-100's kind names them and as T5's does.
_NUMBERS = "encoder_layers decoder_layers num_layers"
_WIDTHS = (
    "d_model encoder_ffn_dim decoder_ffn_dim d_ff vocab_size max_position_embeddings encoder_attention_heads "
    "decoder_attention_heads num_heads"
)
_SIZES = {
    **{f"{name}?": (number(1, 10**4, whole=True), None) for name in _NUMBERS.split()},
    **{f"{name}?": (number(1, 10**7, whole=True), None) for name in _WIDTHS.split()},
    "pad_token_id?": (number(0, whole=True), None),
}


def _whole_model(name: str | os.PathLike[str], **options: Any) -> Any:
    """An encoder-decoder, every weight of which is in its files: transformers would draw what is missing at random.

    Raises:
        ArtifactError: if it cannot be loaded.
        ModelError: if weights are missing, of another shape, or of layers that the configuration does not have.
    """
    config = _from_pretrained("AutoConfig", name).to_dict()
    what = "a model's configuration"
    require_form(config, _SIZES, what, name, headline=f"{what} has sizes that no model has")
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = _from_pretrained("AutoModelForSeq2SeqLM", name, **options)
    bad = {
        "missing": found["missing_keys"],
        "of another shape": [
            str(key if isinstance(key, str) else key[0]) for key in found["mismatched_keys"]
        ],
        "of layers that the configuration does not have": [
            key for key in found["unexpected_keys"] if ".layers." in key
        ],
    }
    if got := "; ".join(f"{what}: {some(sorted(keys), 3)}" for what, keys in bad.items() if keys):
        raise ModelError(
            "the weights are not those of the model's configuration",
            where=name,
            got=got,
            mend="the folder's files are of different models, or one is damaged: get them again",
        )
    return model


def load_model(name: str | os.PathLike[str], dtype: str = "fp32", *, cpu: bool = False) -> Any:
    """A model in eval mode on the GPU, if there is one; specialized if its folder says so.

    Args:
        dtype: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ArtifactError: if it cannot be loaded.
        ModelError: if weights are not finite.
    """
    if (_place(name) / MASKS).is_file():
        model = load_specialized(name, dtype=DTYPES[dtype])
    else:
        model = _whole_model(name, dtype=DTYPES[dtype])
    require_finite(dict(model.named_parameters()), name)
    return model.to("cuda" if torch.cuda.is_available() and not cpu else "cpu").eval()


def load_tokenizer(name: str | os.PathLike[str]) -> Any:
    """Raises: ArtifactError if it cannot be loaded, or is empty, as transformers makes one where its file is gone."""
    tokenizer = _from_pretrained("AutoTokenizer", name)
    if not {*tokenizer.get_vocab()} - {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}:
        raise ArtifactError(
            "a tokenizer without pieces", where=name, expected="tokenizer.json, or a SentencePiece model"
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer and, beside it, the SentencePiece model that it was loaded with, which exports take.

    transformers 5 saves NLLB's and mBART's as ``tokenizer.json`` alone.
    """
    tokenizer.save_pretrained(folder)
    spm, copied = pieces_model(tokenizer), Path(folder) / HUB_PIECES
    if spm is not None and not (copied.exists() and copied.samefile(spm)):
        with atomic_path(copied) as temporary:
            shutil.copyfile(spm, temporary)


def save_specialized(model: Any, folder: str | os.PathLike[str], tokenizer: Any = None) -> None:
    """Write a specialized model: the plain one by ``save_pretrained``, its masks beside it, and a model card.

    Masks say of which weights they are, and are written last: a folder without them is no specialized model.

    Raises:
        ModelError: if the model has no masks.
    """
    state = require_specialization(model)
    if state.masks is None:
        raise ModelError("a model without masks", mend="call model.save_pretrained(folder)")
    folder = Path(folder)
    (folder / MASKS).unlink(missing_ok=True)
    model.save_pretrained(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    saved = {
        "weights_sha256": weights_sha256(model),
        "model_type": model.config.model_type,
        "dropped_neurons": state.dropped_neurons,
    }
    masks = NeuronMasks(state.masks.directions, state.masks.kept, {**state.masks.metadata, _SAVED: saved})
    write_text(folder / CARD, model_card(model))
    masks.save(folder / MASKS)


def load_specialized(
    folder: str | os.PathLike[str],
    *,
    model_class: Any = None,
    allow_other_checkpoint: bool = False,
    **options: Any,
) -> Any:
    """The model that `save_specialized` wrote, specialized.

    Args:
        model_class: of transformers; None: ``AutoModelForSeq2SeqLM``.
        options: of ``from_pretrained``, such as ``dtype=torch.bfloat16``, but those by which a folder's own code would run.

    Raises:
        ArtifactError: if the folder has no masks, or there is no model in it; or if it holds code, which is not run.
        ModelError: if the masks are not of these weights, unless ``allow_other_checkpoint``.
    """
    folder = _place(folder)
    if not folder.is_dir():
        raise ArtifactError(
            "no such folder",
            where=folder,
            mend="of a hub's, load what huggingface_hub.snapshot_download(name) returns",
        )
    if unsafe := {"trust_remote_code", "weights_only"} & {*options}:
        raise ModelError(
            "options by which code in a folder could run",
            got=", ".join(sorted(unsafe)),
            mend="load the model yourself, and call specialize(model, NeuronMasks.load(path))",
        )
    masks = NeuronMasks.load(folder / MASKS)
    if model_class is None:
        model = _whole_model(folder, **options)
    else:
        model = model_class.from_pretrained(str(folder), **options)
    saved = masks.metadata.pop(_SAVED, {})
    if not allow_other_checkpoint and saved.get("weights_sha256") != (ours := weights_sha256(model)):
        raise ModelError(
            "the masks were saved with other weights",
            where=folder,
            got=f"weights {ours[:12]}",
            expected=f"weights {str(saved.get('weights_sha256'))[:12]}",
            mend="save both with save_specialized; load in float32 or bfloat16; or pass allow_other_checkpoint=True",
        )
    dropped = saved.get("dropped_neurons", "bias")
    return specialize(model, masks, dropped_neurons=dropped, allow_other_checkpoint=True)


def model_card(model: Any) -> str:
    """The text of a model card: what it is, its directions and how much each keeps, and how it is loaded."""
    state = require_specialization(model)
    assert state.masks is not None
    masks, name = state.masks, getattr(model.config, "_name_or_path", "") or ""
    dropped = masks.sparsity()
    kept = {
        direction: 100 * (1 - sum(float(of[row]) for of in dropped.values()) / len(dropped))
        for row, direction in enumerate(masks.names)
    }
    # Whatever a file says there, no markup: names alone.
    base = [f"base_model: {name}"] if re.fullmatch(r"[\w./-]+", name) and not Path(name).exists() else []
    method, k = masks.metadata.get("method"), masks.metadata.get("k_percent")
    method = method if re.fullmatch(r"[\w-]+", str(method or "")) else None
    lines = [
        "---", "library_name: transformers", *base, "pipeline_tag: translation", "tags:", "- translation",
        "- neuron-specialization", "---", "", f"# {model.config.model_type}, specialized per translation direction", "",
        "Each translation direction runs through feed-forward neurons of its own (Neuron Specialization, Tan, Wu and Monz, "
        f"EMNLP 2024), which `{MASKS}` names; all other weights are shared. Without the masks the weights are another model.",
        "", *([f"Neurons were selected by `{method}`{', k per direction in the file' if k else ''}.", ""] if method else []),
        "| direction | neurons kept, % |", "|---|---:|", *(f"| {one} | {percent:.1f} |" for one, percent in kept.items()),
        "", "```python", "from neuron_spec.backends.huggingface import direction, load_specialized", "",
        'model = load_specialized("FOLDER")  # of a hub\'s, what huggingface_hub.snapshot_download(name) returns',
        f'with direction(model, "{masks.names[0]}"):', "    model.generate(**batch)", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
