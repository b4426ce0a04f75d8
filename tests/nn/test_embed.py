from __future__ import annotations

import pytest
import torch
from torch import nn

from stmeta.nn import MaskedTokens, ShiftedPatchEmbed, TubeletEmbed
from stmeta.ops import masking_from_keep


def test_tubelets_are_a_convolution():
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 20, (2, 4, 4), (2, 4, 4))
    embed = TubeletEmbed(16, 4, 8, 2, 3, 20)
    embed.load_conv(conv.weight, conv.bias)
    video = torch.randn(2, 3, 8, 16, 16)
    expected = conv(video).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(video), expected, rtol=1e-5, atol=1e-5)
    assert embed.num_patches == expected.shape[1] and embed.grid_size == (4, 4, 4)
    ids = torch.tensor([[3, 60], [0, 1]])
    picked = expected.gather(1, ids[:, :, None].expand(-1, -1, 20))
    torch.testing.assert_close(embed(video, ids), picked, rtol=1e-5, atol=1e-5)
    embed.load_conv(conv.weight)
    assert not embed.proj.bias.any()
    assert embed.state_dict().keys() == {"proj.weight", "proj.bias"}  # timm's names


def test_shifted_patches():
    embed = ShiftedPatchEmbed(16, 4, 8, 2, 3, 20, mean=(0.5,) * 3, std=(0.2,) * 3)
    out = embed(torch.randint(0, 256, (2, 3, 8, 16, 16), dtype=torch.uint8))
    assert out.shape == (2, embed.num_patches, 20)
    assert embed.proj.weight.shape == (20, 5 * 3 * 2 * 4 * 4)


def test_errors():
    with pytest.raises(ValueError, match="ShiftedPatchEmbed: img_size must be a multiple of patch"):
        ShiftedPatchEmbed(15, 4)
    with pytest.raises(ValueError, match="TubeletEmbed: num_frames must be a multiple of tubelet"):
        TubeletEmbed(16, 4, 7)
    with pytest.raises(ValueError, match=r"weight must be \[D, C, t, p, p\] = \[768, 3, 2, 4, 4\]"):
        TubeletEmbed(16, 4).load_conv(torch.zeros(768, 3, 4, 4))


def test_masked_tokens():
    module = MaskedTokens(6)
    masking = masking_from_keep(torch.tensor([[2, 0], [1, 4]]), 5)
    latent, pos = torch.randn(2, 2, 6), torch.randn(5, 6)
    out = module(latent, masking.ids_restore, pos)
    expected = module.mask_token.expand(2, 5, 6).scatter(
        1, masking.ids_keep[:, :, None].expand(-1, -1, 6), latent
    )
    torch.testing.assert_close(out, expected + pos)
    assert list(module.state_dict()) == ["mask_token"]
