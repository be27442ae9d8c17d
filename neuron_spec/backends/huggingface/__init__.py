"""Specialized neurons in Hugging Face's encoder-decoders: M2M-100, NLLB and what else has fc1, fc2 and a ReLU. No fairseq.

Import this before `transformers`: where torchaudio is there and cannot be loaded, as the wheel that fairseq brings beside
a CPU torch, transformers' own imports would fail with it, though no text model needs it. It is then taken for absent.
"""

import importlib.util
import sys


def _without_a_broken_torchaudio() -> None:
    if "transformers" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    try:
        import torchaudio  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except (ImportError, OSError):  # built for a CUDA that is not here, or for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio"] = None  # type: ignore[assignment]  # what find_spec and import take for absent


_without_a_broken_torchaudio()

from neuron_spec.backends.huggingface.deltas import (  # noqa: E402
    add_delta,
    delta_parameters,
    load_delta,
    merge_delta,
    remove_delta,
    save_delta,
)
from neuron_spec.backends.huggingface.exporting import export  # noqa: E402
from neuron_spec.backends.huggingface.loading import load_specialized, save_specialized  # noqa: E402
from neuron_spec.backends.huggingface.profiling import NeuronCounter, profile  # noqa: E402
from neuron_spec.backends.huggingface.specialization import (  # noqa: E402
    direction,
    specialize,
    unspecialize,
    weights_sha256,
)
from neuron_spec.backends.huggingface.translation import translate  # noqa: E402

__all__ = [
    "NeuronCounter",
    "add_delta",
    "delta_parameters",
    "direction",
    "export",
    "load_delta",
    "load_specialized",
    "merge_delta",
    "profile",
    "remove_delta",
    "save_delta",
    "save_specialized",
    "specialize",
    "translate",
    "unspecialize",
    "weights_sha256",
]
