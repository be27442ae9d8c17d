"""Registers the task that trains by episodes."""

import neuron_spec.studies.meta.task  # noqa: F401
