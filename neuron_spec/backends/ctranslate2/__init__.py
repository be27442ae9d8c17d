"""CTranslate2, a translator of its own in C++: models written for it, and run by it."""

import importlib.util

from neuron_spec.errors import NeuronSpecError


def require_ctranslate2() -> None:
    """Raises: NeuronSpecError if the library is not installed, which is an extra."""
    if importlib.util.find_spec("ctranslate2") is None:
        raise NeuronSpecError(
            "CTranslate2 is not installed",
            mend="pip install ctranslate2, which the extra neuron_spec[export] brings too",
        )
