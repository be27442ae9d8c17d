"""Registers the criterion with fairseq, which itself looks into ``tasks`` and ``models`` alone: both import this."""

from neuron_spec.criterions import label_smoothed_cross_entropy_text as label_smoothed_cross_entropy_text
