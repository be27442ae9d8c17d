"""Registers the task whose masks move."""

import neuron_spec.studies.dynamic.task  # noqa: F401
