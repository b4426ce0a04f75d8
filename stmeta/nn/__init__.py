"""Building blocks of the models. Parameter names are those of timm."""

from stmeta.nn.block import Block, DropPath, Mlp
from stmeta.nn.embed import MaskedTokens, ShiftedPatchEmbed, TubeletEmbed
from stmeta.nn.lsa import LocalitySelfAttention
from stmeta.nn.positions import SeparablePositions
from stmeta.nn.spt import ShiftedPatchTokenization

__all__ = [
    "Block",
    "DropPath",
    "LocalitySelfAttention",
    "MaskedTokens",
    "Mlp",
    "SeparablePositions",
    "ShiftedPatchEmbed",
    "ShiftedPatchTokenization",
    "TubeletEmbed",
]
