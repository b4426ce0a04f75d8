"""`parametrize` and `fully_shard` build a class on that of a fused block."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize

from stmeta import fuse, unfuse
from stmeta.swap.conv import FusedConv3d
from tests.swap._cases import assert_close, run
from tests.swap._models import Steps, teach


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def convolution():
    return nn.Sequential(nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4)))


def test_a_parametrized_block(monkeypatch):
    """After `fuse` the op takes the weight as it is made; before it, the block stays."""
    model, x = convolution(), torch.randn(2, 3, 4, 16, 16)
    twin = copy.deepcopy(model)
    fuse(twin, strict=True)
    for m in (model, twin):
        parametrize.register_parametrization(m[0], "weight", Twice())
    seen = []
    forward = FusedConv3d.forward
    monkeypatch.setattr(FusedConv3d, "forward", lambda m, x: (seen.append(m), forward(m, x))[1])
    assert_close(run(twin, lambda m: m(x)), run(model, lambda m: m(x)))
    assert seen == [twin[0]]
    wrapped = type(twin[0])
    with pytest.raises(ValueError, match="ParametrizedFusedConv3d is built on a fused class"):
        unfuse(twin)
    assert type(twin[0]) is wrapped
    parametrize.remove_parametrizations(twin[0], "weight")
    assert unfuse(twin) == 1 and type(twin[0]) is nn.Conv3d
    (left,) = fuse(model).left
    assert left.reason == "its class is built on Conv3d and may do something else"


@pytest.fixture
def mesh(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def step(model, clip):
    """The loss, and all gradients, whole."""
    torch.manual_seed(3)  # all draw the same tokens
    loss = model(clip)[0]
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()}
    return {"loss": loss.detach(), **whole}


# The predictions are a view in the plain model too.
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("parts", [("blocks.0",), ("blocks.0", "patch_embed")], ids=str)
def test_a_sharded_model(monkeypatch, mesh, parts):
    """After `fuse`, on one process."""
    from torch.distributed.fsdp import fully_shard

    teach(monkeypatch)
    model, clip = Steps(), torch.randn(2, 3, 8, 16, 16)
    twin = copy.deepcopy(model)
    fuse(twin, strict=True)
    for part in parts:
        fully_shard(twin.get_submodule(part), mesh=mesh)
    fully_shard(twin, mesh=mesh)
    assert_close(step(twin, clip), step(model, clip))
    with pytest.raises(ValueError, match="FSDPFusedSteps is built on a fused class"):
        unfuse(twin)


def test_a_sharded_convolution(mesh):
    """torch warns, as the output is a view of the product; one sharded before `fuse` stays."""
    from torch.distributed.fsdp import fully_shard

    model, x = convolution(), torch.randn(2, 3, 4, 16, 16)
    twin, late = copy.deepcopy(model), copy.deepcopy(model)
    fuse(twin, strict=True)
    for m in (twin, late):
        fully_shard(m[0], mesh=mesh)
    with pytest.warns(UserWarning, match="FSDPFusedConv3d. returned a view tensor"):
        found = twin(x)
    torch.testing.assert_close(found, model(x))
    with pytest.raises(ValueError, match="FSDPFusedConv3d is built on a fused class"):
        unfuse(twin)
    (left,) = fuse(late).left
    assert left.reason == "its class is built on Conv3d and may do something else"
