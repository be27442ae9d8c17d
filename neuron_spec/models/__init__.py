"""Registers the model and its architectures with fairseq."""

from neuron_spec import criterions as criterions
from neuron_spec.backends.fairseq import compat as compat
from neuron_spec.models import neuron_spec_adapters as neuron_spec_adapters
from neuron_spec.models import neuron_spec_lass as neuron_spec_lass
from neuron_spec.models import neuron_spec_transformer as neuron_spec_transformer
