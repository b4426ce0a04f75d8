"""Building blocks of the models. Parameter names are those of timm."""

from stmeta.nn.block import Block, DropPath, Mlp
from stmeta.nn.embed import MaskedTokens, ShiftedPatchEmbed, TubeletEmbed
from stmeta.nn.lsa import LocalitySelfAttention
from stmeta.nn.memory import MANN, MemoryLayer, NTMMemory
from stmeta.nn.positions import SeparablePositions
from stmeta.nn.spt import ShiftedPatchTokenization

__all__ = [
    "MANN",
    "Block",
    "DropPath",
    "LocalitySelfAttention",
    "MaskedTokens",
    "MemoryLayer",
    "Mlp",
    "NTMMemory",
    "SeparablePositions",
    "ShiftedPatchEmbed",
    "ShiftedPatchTokenization",
    "TubeletEmbed",
]
