"""The tests' own way to compose fairseq's configurations."""

from __future__ import annotations

from unittest import mock

import fairseq.dataclass.utils
import pytest
from omegaconf import OmegaConf


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--dropout", "0.3"),
        ("--adam-betas", "(0.9, 0.98)"),
        ("--arch", "neuron_spec_transformer"),
        ("--fp16",),
    ],
    ids=" ".join,
)
def test_configurations_are_those_that_hydra_composes(workshop, flags):
    ours = workshop.config(*flags)
    with mock.patch.object(fairseq.dataclass.utils, "compose", fairseq.dataclass.utils.compose.__wrapped__):
        hydras = workshop.config(*flags)
    assert repr(ours) == repr(hydras)
    assert OmegaConf.is_struct(ours) == OmegaConf.is_struct(hydras)
