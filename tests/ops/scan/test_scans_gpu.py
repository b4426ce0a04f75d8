"""The scans recorded as CUDA graphs; test_ops_gpu.py and test_patch_shift_gpu.py do the others."""

from __future__ import annotations

import pytest
import torch

from stmeta.ops import availability
from tests.gpu_smoke import SCANS, Scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("name", SCANS)
def test_side_stream_and_graph(name, backend):
    """Launches go to the current stream and wait for nothing, forward and backward."""
    if reason := availability(name)[backend]:
        pytest.skip(reason)
    scan = Scan(name, "cuda", torch.float32)
    expected = scan.run(backend)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        scan.run(backend)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        captured = scan.run(backend)
    for x in captured:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))
