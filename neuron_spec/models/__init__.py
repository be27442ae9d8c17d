"""Registers the model and its architectures with fairseq."""

from neuron_spec import compat as compat
from neuron_spec.models import neuron_spec_transformer as neuron_spec_transformer
