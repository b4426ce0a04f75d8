"""Building blocks of the models. Parameter names are those of timm."""

from stmeta.nn.block import Block, DropPath, Mlp
from stmeta.nn.lsa import LocalitySelfAttention
from stmeta.nn.masking import Masking, masking_from_keep, random_masking, restore_tokens
from stmeta.nn.positions import SeparablePositions
from stmeta.nn.spt import ShiftedPatchTokenization

__all__ = [
    "Block",
    "DropPath",
    "LocalitySelfAttention",
    "Masking",
    "Mlp",
    "SeparablePositions",
    "ShiftedPatchTokenization",
    "masking_from_keep",
    "random_masking",
    "restore_tokens",
]
