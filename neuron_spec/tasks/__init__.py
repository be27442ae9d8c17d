"""Registers the tasks with fairseq."""

from neuron_spec import compat as compat
from neuron_spec.tasks import neuron_profiling as neuron_profiling
from neuron_spec.tasks import neuron_specialization as neuron_specialization
