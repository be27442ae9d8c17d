"""Registers the models with adapters."""

import neuron_spec.studies.adapters.model  # noqa: F401
