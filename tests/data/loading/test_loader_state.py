"""Where a loader stands: saved, loaded and set."""

from __future__ import annotations

import pytest
import torch

from stmeta.data.loading.loader import ClipLoader
from tests.data._loading import all_same, batches, config, mixed, same, split

__all__ = ["mixed", "split"]  # fixtures


@pytest.mark.parametrize("stop", [1, 5, 6, 8, 12])
def test_resume_is_exact(split, stop):
    expected = batches(split, 14)
    with ClipLoader(split, config()) as loader:
        assert len(loader) == 6
        found = []
        while len(found) < stop:
            for batch in loader:
                found.append(batch)
                if len(found) == stop:
                    break
        state = loader.state_dict()
    assert all(type(value) is int for value in state.values())
    assert (state["epoch"], state["position"]) == divmod(stop, 6)
    with ClipLoader(split, config(threads=1)) as loader:
        loader.load_state_dict(state)
        while len(found) < 14:
            for batch in loader:
                found.append(batch)
                if len(found) == 14:
                    break
    assert all_same(found, expected)


def test_resume_with_another_number_of_ranks(split):
    with ClipLoader(split, config(batch_size=4)) as loader:
        for _, _batch in zip(range(2), loader, strict=False):
            pass
        state = loader.state_dict()
        expected = next(iter(loader))
    parts = []
    for rank in range(2):
        with ClipLoader(split, config(batch_size=2), rank=rank, world_size=2) as loader:
            loader.load_state_dict(state)
            parts.append(next(iter(loader)))
    assert parts[0].key + parts[1].key == expected.key
    assert torch.equal(torch.cat([part.video for part in parts]), expected.video)


def test_a_state_of_other_data_is_refused(split, mixed):
    with ClipLoader(split, config()) as loader, ClipLoader(mixed, config()) as other:
        with pytest.raises(ValueError, match="samples = 26, this loader has 12"):
            other.load_state_dict(loader.state_dict())
        with pytest.raises(
            ValueError, match=r"position 1 of batches of 3 clips .* keep batch_size"
        ):
            loader.load_state_dict({"epoch": 0, "position": 1, "step": 3})


def test_set_epoch_and_leaving_early(split):
    with ClipLoader(split, config(train=False)) as loader:
        first = list(loader)
        loader.set_epoch(0)
        for batch in loader:
            assert same(batch, first[0])
            break
        assert same(next(iter(loader)), first[1])  # goes on
        loader.set_epoch(0)
        assert all_same(list(loader), first)
