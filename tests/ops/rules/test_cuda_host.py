"""The executor of tests/cuda_host itself: what it is there for does show."""

from __future__ import annotations

import pytest
import torch

from tests.ops._harness.cuda_host import ROOT, HostProgram, HostProgramError, as_tensor

NUMBERS = list(range(64))


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> HostProgram:
    """Reverses numbers: with no barrier (0), the right one (1), one that half of them miss (2)."""
    return HostProgram("reverse", "thread", tmp_path_factory.mktemp("cuda_host"))


def test_runs(program):
    (result,) = program.run(1, NUMBERS)
    assert as_tensor(result, torch.int64, 64).tolist() == NUMBERS[::-1]


def test_missing_barrier_is_found(program):
    with pytest.raises(HostProgramError, match="data race"):
        program.run(0, NUMBERS)


def test_wait_without_end_is_found(program):
    with pytest.raises(HostProgramError, match="some threads wait for others"):
        program.run(2, NUMBERS)


KB = 1024
LAUNCH, CLUSTERS, RESIDENT, LIMIT = range(4)
DECLARED = 4096  # bytes of the kernel's own arrays


def _call(
    what: int, *, device: int = 0, cluster: int = 1, grid=(1, 1, 1), threads=128, shared=0
) -> list[int]:
    return [what, device, cluster, *grid, threads, shared]


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """Runs calls on a runtime that refuses what a GPU would: results, and how often it was asked
    for more shared memory; an error as text."""
    folder = tmp_path_factory.mktemp("launch_rules")
    toolkit = ROOT / "tests" / "cuda_host" / "toolkit"
    built = HostProgram("launch_rules", "undefined", folder, (f"-I{toolkit}",))

    def run(*calls: list[int], largest_cluster: int = 8, is_built: bool = True):
        numbers = [number for call in calls for number in call]
        error, *rest = built.run([DECLARED, largest_cluster, int(is_built)], numbers)
        if error:
            return error.decode()
        results, (asked, last_error) = (as_tensor(raw, torch.int64, -1).tolist() for raw in rest)
        assert last_error == 0, "an error is left for the next call"
        return results, asked

    return run


@pytest.mark.parametrize("shared", [0, 44 * KB, 44 * KB + 16, 48 * KB, 48 * KB + 16, 223 * KB])
def test_launch_with_arrays_of_its_own(rules, shared):
    """48 KB and its opt-in count what the kernel declares, too."""
    assert rules(_call(LAUNCH, shared=shared)) == ([1], 1)
    assert rules(_call(RESIDENT, shared=shared), _call(LAUNCH, shared=shared)) == ([132, 1], 1)


def test_shared_memory_is_asked_for_once_and_never_lowered(rules):
    """Launches of 200, 60 and 200 KB, as two threads would mix them; each device by itself."""
    large, small = (_call(LAUNCH, shared=size * KB) for size in (200, 60))
    elsewhere = _call(LAUNCH, shared=200 * KB, device=1)
    limits = [_call(LIMIT), _call(LIMIT, device=1)]
    results, asked = rules(large, small, large, elsewhere, elsewhere, *limits)
    assert results == [1, 1, 1, 1, 1, 223 * KB, 223 * KB] and asked == 2


def test_too_much_shared_memory_is_named(rules):
    assert "dynamic shared memory must be at most 228352, got" in rules(
        _call(LAUNCH, shared=223 * KB + 16)
    )


@pytest.mark.parametrize("axis", range(3))
def test_empty_grid_launches_nothing(rules, axis):
    grid = [3, 3, 3]
    grid[axis] = 0
    assert rules(_call(LAUNCH, grid=grid))[0] == [0]


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"grid": (2**31, 1, 1)}, "blocks along x must be at most 2147483647, got 2147483648"),
        ({"grid": (1, 65536, 1)}, "blocks along y must be at most 65535, got 65536"),
        ({"grid": (1, 1, 65536)}, "blocks along z must be at most 65535, got 65536"),
        ({"threads": 1056}, "threads of a block must be at most 1024, got 1056"),
        ({"grid": (12, 1, 1), "cluster": 8}, "blocks along x must be a multiple of 8, got 12"),
    ],
    ids=["x", "y", "z", "threads", "cluster"],
)
def test_broken_rule_is_named(rules, options, rule):
    assert rule in rules(_call(LAUNCH, **options))


def test_smaller_clusters_where_the_query_fails(rules):
    sizes = [_call(CLUSTERS, cluster=size, shared=100 * KB) for size in (8, 4, 1)]
    results, _ = rules(*sizes, largest_cluster=4)
    assert results == [0, 1, 1]


def test_cluster_with_too_much_shared_memory(rules):
    assert rules(_call(CLUSTERS, cluster=8, shared=224 * KB))[0] == [0]


def test_kernel_of_other_architectures(rules):
    assert "stmeta._C was built for other GPUs" in rules(_call(LAUNCH), is_built=False)
