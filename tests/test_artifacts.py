import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuron_spec import artifacts
from neuron_spec.artifacts import (
    atomic_path,
    claim,
    completed,
    hash_file,
    hash_state,
    is_already_here,
    is_made_from,
    load_tensors,
    read_json,
    read_lines,
    recorded_command,
    require_file,
    running,
    save_tensors,
    signature,
    versions,
    write_json,
    write_text,
)
from neuron_spec.errors import ArtifactError, NeuronSpecError, message_in

TENSORS = {"b": torch.arange(6).view(2, 3), "a": torch.tensor([True, False])}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_failing_first_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "folder" / "file.json", {"not json": object()})
    folder = tmp_path / "folder"
    assert not folder.exists() or names(folder) == []


def test_writing_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"ä": 1})
    write_json(path, {"ä": 2})
    assert read_json(path, "file") == {"ä": 2}
    assert names(path.parent) == ["file.json"]


def test_tensors_round_trip(tmp_path):
    save_tensors(tmp_path / "t.safetensors", TENSORS, {"list": ["de-en"], "number": 95})
    tensors, metadata = load_tensors(tmp_path / "t.safetensors", "file")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert metadata == {"list": ["de-en"], "number": 95}


def test_same_content_same_bytes(tmp_path):
    metadata = {"x": 1, "y": {"b": 2, "a": 1}, **{f"key {i}": "ä" for i in range(8)}}
    save_tensors(tmp_path / "1", TENSORS, metadata)
    reordered = {key: TENSORS[key].clone() for key in sorted(TENSORS)}
    save_tensors(tmp_path / "2", reordered, {**dict(reversed(metadata.items())), "y": {"a": 1, "b": 2}})
    save_tensors(tmp_path / "3", TENSORS, metadata | {"x": 2})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert (tmp_path / "1").read_bytes() != (tmp_path / "3").read_bytes()
    save_tensors(tmp_path / "bare", TENSORS, {})
    assert load_tensors(tmp_path / "bare", "file")[0].keys() == TENSORS.keys()


@pytest.mark.parametrize("kept_bytes", [0, 5, 60, -1])
def test_truncated_tensors(tmp_path, kept_bytes):
    path = tmp_path / "t.safetensors"
    save_tensors(path, TENSORS, {"x": 1})
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ArtifactError, match="profile cannot be read") as caught:
        load_tensors(path, "profile")
    assert str(path) in str(caught.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(ArtifactError, match="thing not found"):
        require_file(tmp_path / "absent", "thing")
    with pytest.raises(ArtifactError, match="thing not found"):
        require_file(tmp_path, "thing")
    (tmp_path / "text").write_text("plain text, long enough for a header length")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_tensors(tmp_path / "text", "mask file")
    for content in (b"plain text", b'{"latin": "\xe9"}', b"[" * 100_000):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(ArtifactError, match="not valid JSON"):
            read_json(tmp_path / "text", "card")


def test_hash_of_weights_survives_saving_again_and_sees_every_change(tmp_path):
    state = {"w": torch.randn(3, 4), "half": torch.randn(2).half(), "scalar": torch.tensor(1.5)}
    torch.save({"model": state, "optimizer": 1}, tmp_path / "1.pt")
    torch.save({"model": dict(reversed(state.items()))}, tmp_path / "2.pt")
    first, second = (torch.load(tmp_path / name)["model"] for name in ("1.pt", "2.pt"))
    assert hash_state(first) == hash_state(second) == hash_state(state)
    # The same bytes in memory order, but another matrix.
    assert hash_state({"w": state["w"].t().contiguous().t()}) == hash_state({"w": state["w"]})
    for changed in (
        {**state, "w": state["w"].view(4, 3)},
        {**state, "w": state["w"].t()},
        {**state, "w": state["w"].nextafter(torch.tensor(9.0))},
        {**state, "half": state["half"].bfloat16()},
        {"v" if name == "w" else name: value for name, value in state.items()},
    ):
        assert hash_state(changed) != hash_state(state)


def test_versions_are_those_of_the_packages_that_compute():
    found = versions()
    for name in ("torch", "numpy", "scipy", "matplotlib", "sacrebleu", "sacremoses"):
        if importlib.util.find_spec(name):
            assert found[name] == importlib.metadata.version(name)
        else:
            assert name not in found


def test_a_signature_names_inputs_and_parameters_but_tolerates_versions():
    made = signature("select", inputs={"profile": "abc"}, parameters={"k": (95, 90)})
    found = json.loads(json.dumps(made)) | {"versions": {"torch": "0"}}
    assert is_made_from(found, made)
    assert not is_made_from(None, made)
    assert not is_made_from({**found, "stage": "profile"}, made)
    assert not is_made_from({**found, "inputs": {"profile": "abd"}}, made)
    assert not is_made_from({**found, "parameters": {"k": [95]}}, made)


def test_a_message_says_what_where_got_expected_and_how_to_mend():
    error = NeuronSpecError("what", where="w", got=0, expected="e", mend="m")
    assert str(error).splitlines() == [
        "what",
        "  where:    w",
        "  got:      0",
        "  expected: e",
        "  mend:     m",
    ]


def test_what_is_here_is_kept_if_the_same_and_refused_if_not():
    made = signature("select", inputs={"profile": "abc"}, parameters={"k": {"en-de": 95.0, "de-en": 95.0}})
    assert not is_already_here("out", None, made, what="mask file")
    assert is_already_here("out", made | {"versions": {}}, made, what="mask file")
    other = made | {"parameters": {"k": {"en-de": 90.0, "de-en": 95.0}, "seed": 1}}
    with pytest.raises(ArtifactError) as refused:
        is_already_here("out", other, made, what="mask file")
    assert str(refused.value).splitlines() == [
        "another mask file is already here",
        "  where:    out",
        "  got:      parameters.k.en-de: 90.0, parameters.seed: 1",
        "  expected: parameters.k.en-de: 95.0, parameters.seed: absent",
        "  mend:     name another --output, or delete what is there",
    ]
    with pytest.raises(ArtifactError, match="no signature") as refused:
        is_already_here("out", {}, made, what="mask file")
    assert str(refused.value).count("parameters.") == 2 and "more" not in str(refused.value)
    many = made | {"parameters": {"k": {str(i): i for i in range(20)}}}
    with pytest.raises(ArtifactError, match="and 18 more"):
        is_already_here("out", many, made, what="mask file")


# Who made it ----------------------------------------------------------------------------------


def test_a_signature_records_the_command_and_compares_it_to_none(tmp_path):
    with running(["neuron-spec", "select", "p", "--output", "a b", "--k", "90"], Path("a b")):
        made = signature("select", inputs={}, parameters={"k": 90})
    assert made["command"] == "neuron-spec select p --output OUTPUT --k 90"
    assert recorded_command(made, tmp_path / "new place") == (
        f"neuron-spec select p --output '{tmp_path}/new place' --k 90"
    )
    with running(["neuron-spec", "select", "q"]):
        other = signature("select", inputs={}, parameters={"k": 90})
    assert other["command"] != made["command"]
    assert is_made_from(made, other) and is_already_here(tmp_path, made, other, what="file")
    assert recorded_command(None, tmp_path) is None and recorded_command({"stage": "old"}, tmp_path) is None


def test_outside_a_command_none_is_recorded(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/notebook", "x"])
    assert "command" not in signature("s", inputs={}, parameters={})
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fairseq-validate", "data bin"])
    assert signature("s", inputs={}, parameters={})["command"] == "fairseq-validate 'data bin'"


def test_a_checkout_records_its_commit():
    made = signature("s", inputs={}, parameters={})
    if (Path(artifacts.__file__).parents[1] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", made["commit"])
    else:
        assert "commit" not in made


def test_the_hash_of_an_artefact_does_not_depend_on_who_made_it(tmp_path):
    made = {"stage": "s", "inputs": {}, "parameters": {}, "versions": {}}
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, more in zip(paths, ({}, {"command": "a", "commit": "b"}, {"command": "another"}), strict=True):
        save_tensors(path, TENSORS, {"signature": {**made, **more}})
    assert paths[0].read_bytes() != paths[1].read_bytes()
    # As it was hashed before commands were recorded.
    assert {hash_file(path) for path in paths} == {hashlib.sha256(paths[0].read_bytes()).hexdigest()}


def test_what_is_complete_is_said_and_what_is_another_is_refused(tmp_path, capsys):
    made = signature("s", inputs={}, parameters={"k": 1})
    for path in (tmp_path / "a.json", tmp_path / "a.safetensors"):
        assert not completed(path, made, what="thing")
        if path.suffix == ".json":
            write_json(path, {"signature": made})
        else:
            save_tensors(path, TENSORS, {"signature": made})
        assert capsys.readouterr().err == ""
        assert completed(path, made, what="thing")
        assert capsys.readouterr().err == f"{path}: complete already\n"
        with pytest.raises(ArtifactError, match=r"another thing is already here[\s\S]*parameters.k: 1"):
            completed(path, signature("s", inputs={}, parameters={"k": 2}), what="thing")
    write_json(tmp_path / "unsigned.json", {})
    with pytest.raises(ArtifactError, match="no signature"):
        completed(tmp_path / "unsigned.json", made, what="thing", where=tmp_path)


def test_artefacts_are_light():
    code = "import sys, neuron_spec.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def load(path: Path) -> None:
    load_tensors(path, "masks")


def read(path: Path) -> None:
    read_json(path, "card")


def require(path: Path) -> None:
    require_file(path, "checkpoint")


@pytest.mark.parametrize("opened", [require, read, load, read_lines, hash_file])
def test_git_lfs_pointers_are_no_files(tmp_path, opened):
    path = tmp_path / "file"
    path.write_text(POINTER)
    with pytest.raises(ArtifactError, match=r"Git-LFS pointer[\s\S]*git lfs pull") as caught:
        opened(path)
    assert str(path) in str(caught.value)
    path.write_text(f"a text about {POINTER}")
    assert require_file(path, "text") == path


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "t.safetensors", TENSORS, {})
        save_tensors(tmp_path / "t.safetensors", TENSORS, {})  # replaced too
        write_json(tmp_path / "j.json", {})
        with atomic_path(tmp_path / "c.pt") as temporary:
            torch.save(TENSORS, temporary)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("t.safetensors", "j.json", "c.pt"), 0o666 & ~umask)


def test_what_was_left_by_killed_processes_is_removed_and_what_others_write_is_not(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = artifacts._HERE
    left = [
        f".a.json.{host}-{ended.pid}.tmp",
        f".a.json.{ended.pid}.tmp",
        f".a.json.{host}-{os.getpid()}.tmp",
    ]
    kept = [
        f".a.json.{host}-1.tmp",
        f".a.json.other-{ended.pid}.tmp",
        f".a.json.b.{host}-{ended.pid}.tmp",
        "a.json.tmp",
    ]
    for name in (*left, *kept):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "a.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *kept}
    folder = tmp_path / f".f.{host}-{ended.pid}.tmp"
    (folder / "inside").mkdir(parents=True)
    with artifacts.atomic_folder(tmp_path / "f") as temporary:
        (temporary / "file").write_text("whole")
    assert not folder.exists() and (tmp_path / "f" / "file").read_text() == "whole"


def test_what_cannot_be_written_is_refused_before_work(tmp_path):
    made = signature("s", inputs={}, parameters={})
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ArtifactError, match=r"nothing can be written here[\s\S]*a folder"):
        completed(tmp_path / "folder.json", made, what="thing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="below a file"):
        completed(tmp_path / "file" / "below" / "a.json", made, what="thing")
    assert not completed(tmp_path / "new" / "below" / "a.json", made, what="thing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]


@pytest.mark.parametrize(
    "raised", [OSError(28, "No space left on device", "a.pt"), OSError(30, "Read-only", "a.pt")]
)
def test_a_full_disk_is_a_message_also_behind_torchs_error(raised):
    try:
        try:
            raise raised
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")  # noqa: B904
    except RuntimeError as error:
        assert re.search(r"the disk is (full|read-only)\n  where:    a\.pt", message_in(error))
    assert message_in(FileNotFoundError(2, "No such file")) is None
    try:
        try:
            raise ArtifactError("ours")
        except ArtifactError:
            raise RuntimeError("a bug while ours was handled")  # noqa: B904
    except RuntimeError as error:
        assert message_in(error) is None


def test_a_gpu_without_memory_left_is_a_message():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    message = message_in(error)
    assert message is not None and "the GPU's memory is used up" in message and "--max-tokens" in message
    assert message_in(RuntimeError("CUDA error: an illegal instruction")) is None


@pytest.mark.parametrize(
    "text", ['{"de": 1, "en": 2, "de": 3}', '[{"a": {"b": 1, "b": 1}}]', '{"a": "\\ud800x"}']
)
def test_json_with_a_key_twice_or_half_a_character_is_refused(text, tmp_path):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ArtifactError, match="not valid JSON"):
        read_json(tmp_path / "f.json", "card")
    (tmp_path / "f.json").write_text('{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}')
    assert read_json(tmp_path / "f.json", "card") == {"a": "\U0001f600", "b": "\\ud800"}


@pytest.mark.parametrize("links", [True, False])
def test_of_two_that_claim_a_folder_one_does(links, tmp_path, monkeypatch):
    mine, other = (signature("s", inputs={}, parameters={"k": k}) for k in (1, 2))
    if not links:

        def refused(*paths):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr("neuron_spec.artifacts.os.link", refused)
    mark = tmp_path / "new" / "signature.json"
    claim(mark, mine, what="evaluation")
    claim(mark, mine, what="evaluation")
    if links:
        with pytest.raises(ArtifactError, match="another evaluation is already here"):
            claim(mark, other, what="evaluation")
    assert read_json(mark, "signature")["parameters"] == {"k": 1}
    assert [path.name for path in mark.parent.iterdir()] == ["signature.json"]
