from __future__ import annotations

import json
import os

import pytest

from stmeta.data.shards.index import BadSample
from stmeta.data.shards.writer import build_index
from stmeta.data.verify import verifier as module
from tests.data._shards import check, shards, split

__all__ = ["split"]  # a fixture


class _Stop(Exception):
    pass


def count_reads(monkeypatch) -> list[str]:
    read: list[str] = []
    original = module.check_tar
    monkeypatch.setattr(
        module, "check_tar", lambda path, names: (read.append(path.name), original(path, names))[1]
    )
    return read


def test_resume(split, monkeypatch):
    names = [path.name for path in shards(split)]
    damaged = bytearray((split / names[0]).read_bytes())
    damaged[1000:1400] = bytes(400)
    (split / names[0]).write_bytes(damaged)
    whole = check(split, "decode")
    read = count_reads(monkeypatch)

    def stop(_folder: str, _done: int, _total: int, _bad: int) -> None:
        if names[1] in read:
            raise _Stop

    with pytest.raises(_Stop):
        check(split, resume=True, progress=stop)
    assert read == names[:2] and not list(split.glob("*.tmp"))
    read.clear()
    second = check(split, resume=True)
    assert read == names[1:] and second.resumed == 1
    assert second.bad == whole.bad and second.bad
    assert (second.samples, second.frames) == (whole.samples, whole.frames)
    assert (second.shards, second.bytes) == (whole.shards, whole.bytes)
    read.clear()
    third = check(split, resume=True)
    assert read == [] and third.bad == whole.bad and third.resumed == len(names)
    assert check(split, "tar", resume=True).resumed == 0  # each level for itself


def test_a_stored_record_keeps_its_form(split):
    """Key, level, reason: files that were written before are read."""
    check(split, "header", resume=True)
    path = split / "verify-header.json"
    stored = json.loads(path.read_text())
    name = shards(split)[0].name
    stored["shards"][name] |= {"bad": [["k", "tar", "why"]], "remarks": [["m", "header", "so"]]}
    path.write_text(json.dumps(stored))
    found = check(split, "header", resume=True)
    assert found.bad == [BadSample(str(split / name), "k", "why", level="tar")]
    assert found.remarks == [BadSample(str(split / name), "m", "so", level="header")]


def test_resume_reads_again_what_changed(split, monkeypatch, caplog):
    names = [path.name for path in shards(split)]
    check(split, resume=True)
    read = count_reads(monkeypatch)
    os.utime(split / names[1])
    check(split, resume=True)
    assert read == [names[1]]
    build_index(split, full=True)
    read.clear()
    check(split, resume=True)
    assert read == names  # what they were compared with is another
    for content in ("{", "[]", '{"shards": 1}', '{"shards": {"a": {"b": 1}}}'):
        (split / "verify-decode.json").write_text(content)
        read.clear()
        caplog.clear()
        check(split, resume=True)
        assert read == names and "cannot be read, so all shards" in caplog.text


def test_a_folder_that_cannot_be_written_to(split, monkeypatch, caplog):
    def refuse(*_args, **_options):
        raise PermissionError("read-only")

    monkeypatch.setattr("stmeta.data.verify.state.os.replace", refuse)
    assert check(split, resume=True).samples == 9
    assert "cannot be written" in caplog.text and not list(split.glob("verify*"))
