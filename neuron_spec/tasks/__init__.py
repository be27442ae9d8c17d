"""Registers the tasks with fairseq."""

from neuron_spec import criterions as criterions
from neuron_spec.backends.fairseq import compat as compat
from neuron_spec.backends.fairseq import finite as finite
from neuron_spec.backends.fairseq import plugin as plugin
from neuron_spec.backends.fairseq import processes as processes
from neuron_spec.backends.fairseq import resuming as resuming
from neuron_spec.tasks import neuron_profiling as neuron_profiling
from neuron_spec.tasks import neuron_spec_dynamic as neuron_spec_dynamic
from neuron_spec.tasks import neuron_spec_meta as neuron_spec_meta
from neuron_spec.tasks import neuron_specialization as neuron_specialization

plugin.say_ours_last()
finite.name_what_is_not_finite()
processes.meet_in_time()
resuming.go_on_as_if_never_killed()
plugin.require_task(neuron_specialization.NeuronSpecializationTask.add_args)
