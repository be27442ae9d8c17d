"""Registers the LaSS baseline."""

import neuron_spec.studies.lass.model  # noqa: F401
