"""Hugging Face's VideoMAE in one graph, where the tokens of a mask are not counted beforehand."""

from __future__ import annotations

import pytest
import torch

from tests.swap._cases import assert_close, error, load, randomise, run
from tests.swap.test_videomae import SMALL, TOKENS, clip, fused, mask, pretrain


@pytest.fixture(scope="module")
def hf():
    return load("transformers")


UNEVEN = torch.arange(TOKENS).expand(2, -1) < torch.tensor([[5], [6]])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_one_graph(hf):
    """No graph breaks; the number of visible tokens may change from call to call."""
    config = hf.VideoMAEConfig(**{**SMALL, "num_hidden_layers": 1})
    model = randomise(hf.VideoMAEForPreTraining(config))
    torch._dynamo.reset()
    compiled = torch.compile(fused(model), backend="aot_eager", fullgraph=True)
    for hidden in (28, 20):
        call = pretrain(clip(), mask(hidden))
        found = {k.replace("grad _orig_mod.", "grad "): v for k, v in run(compiled, call).items()}
        assert_close(found, run(model, call))
    with pytest.raises(RuntimeError, match=r"same number of tokens(.*)unfuse the model first"):
        compiled(clip(), UNEVEN)


# transformers collects outputs in a variable of its own.
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@pytest.mark.parametrize(("strict", "normalise"), [(False, True), (False, False), (True, True)])
def test_export(hf, strict, normalise):
    config = hf.VideoMAEConfig(**SMALL, norm_pix_loss=normalise)
    model = randomise(hf.VideoMAEForPreTraining(config)).eval()
    program = torch.export.export(fused(model), (clip(), mask(28)), strict=strict).module()
    for hidden in (28, 20):
        x, masked = clip(), mask(hidden)
        assert error(program(x, masked).loss, model(x, masked).loss) <= 1e-5
    with pytest.raises(RuntimeError, match="unfuse the model first"):
        program(clip(), UNEVEN)
