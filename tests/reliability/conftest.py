"""The stages, undisturbed, once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stages import STAGES, Line


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    line = Line(tmp_path_factory.mktemp("line"))
    line.prepare([stage.name for stage in STAGES])
    yield line
    line.close()
