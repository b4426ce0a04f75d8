"""Building blocks of the models. Parameter names are those of timm."""

from stmeta.nn.block import Block, DropPath, Mlp
from stmeta.nn.lsa import LocalitySelfAttention
from stmeta.nn.positions import SeparablePositions
from stmeta.nn.spt import ShiftedPatchTokenization

__all__ = [
    "Block",
    "DropPath",
    "LocalitySelfAttention",
    "Mlp",
    "SeparablePositions",
    "ShiftedPatchTokenization",
]
