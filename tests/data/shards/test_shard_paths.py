from __future__ import annotations

import pytest

from stmeta._errors import DataError
from stmeta.data.shards.index import BadSample
from stmeta.data.shards.paths import find_shards
from stmeta.data.verify.verifier import verify
from tests.data._shards import shards, split

__all__ = ["split"]  # a fixture


def test_names_of_shards(split, tmp_path):
    names = shards(split)
    assert find_shards([split]) == {split: names}
    assert find_shards([names[1], split, names[0]]) == {split: [names[1], names[0], *names[2:]]}
    assert find_shards([f"{split}/{{000000..000001}}.tar"]) == {split: names[:2]}
    assert find_shards([f"{tmp_path}/{{train,train}}"]) == {split: names}
    assert find_shards([f"{split}/*"]) == find_shards([f"{tmp_path}/tr*"]) == {split: names}
    report = verify([f"{split}/00000{{0..{len(names)}}}.tar"], level="tar")
    assert report.bad == [
        BadSample(str(split / f"{len(names):06d}.tar"), "", "the shard is missing", "tar")
    ]
    for name in (tmp_path / "nothing", f"{split}/*.zip", f"{split}/{{a,b}}.tar"):
        with pytest.raises(DataError, match="there is no such file or folder"):
            find_shards([name])
    with pytest.raises(DataError, match=r"no shards .*; did you mean .*train\?"):
        find_shards([tmp_path])
    with pytest.raises(ValueError, match="must be local files, got 'https://"):
        find_shards(["https://a/b.tar"])
    with pytest.raises(ValueError, match="do not match"):
        find_shards([f"{split}/{{0..1.tar"])
    with pytest.raises(ValueError, match="got none"):
        find_shards([])
    with pytest.raises(ValueError, match="level must be one of tar"):
        verify([split], level="all")
