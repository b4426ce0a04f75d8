"""`fuse` and `unfuse`: walk through a model and give blocks their fused class."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from stmeta.ops._core.dispatch import BACKENDS
from stmeta.swap import conv, mae_st, patches, videomae_own
from stmeta.swap._common import Fused, is_own, original
from stmeta.swap._report import FuseReport, Left, Replaced
from stmeta.swap._structure import fused_class

_HF = "transformers.models.videomae.modeling_videomae"
_MAE = "transformers.models.vit_mae.modeling_vit_mae"
_SPT = "vit_pytorch.vit_for_small_dataset"
_VIT = "timm.models.vision_transformer.VisionTransformer"

# Class of a block -> where its fused class lies. Read only for models that have such a block, so
# that no package is imported which the model did not import itself.
_BLOCKS = {
    "torch.nn.modules.conv.Conv2d": ("stmeta.swap.conv", "FusedConv2d"),
    "torch.nn.modules.conv.Conv3d": ("stmeta.swap.conv", "FusedConv3d"),
    "torch.nn.modules.container.Sequential": ("stmeta.swap.patches", "FusedPatches"),
    f"{_HF}.VideoMAEEmbeddings": ("stmeta.swap.videomae", "FusedVideoMAEEmbeddings"),
    f"{_HF}.VideoMAEForPreTraining": ("stmeta.swap.videomae", "VideoMAEForPreTraining"),
    f"{_MAE}.ViTMAEDecoder": ("stmeta.swap.vit_mae", "FusedViTMAEDecoder"),
    f"{_MAE}.ViTMAEEmbeddings": ("stmeta.swap.vit_mae", "FusedViTMAEEmbeddings"),
    f"{_MAE}.ViTMAEForPreTraining": ("stmeta.swap.vit_mae", "ViTMAEForPreTraining"),
    "vit_pytorch.mae.MAE": ("stmeta.swap.mae", "FusedMAE"),
    f"{_SPT}.LSA": ("stmeta.swap.small_dataset", "FusedLSA"),
    f"{_SPT}.SPT": ("stmeta.swap.small_dataset", "FusedSPT"),
    "timm.layers.patch_dropout.PatchDropout": ("stmeta.swap.patch_dropout", "FusedPatchDropout"),
    _VIT: ("stmeta.swap.vision_transformer", "FusedVisionTransformer"),
}

# Of projects that are no packages, so that the path of a class says nothing.
_STRUCTURES = (mae_st.MaskedAutoencoder, videomae_own.Encoder, videomae_own.Autoencoder)


def fuse(model: nn.Module, *, backend: str = "auto", strict: bool = False) -> FuseReport:
    """Put fused ops into the blocks of a model that we know, in place.

    A block is known by its exact class, configuration and (outside torch) the text of its forward;
    one of mae_st or VideoMAE, which are no packages, by the text of its methods, wherever it lies.
    It gives the same outputs and gradients as before up to rounding, from the same Parameters: the
    state_dict, optimizers, hooks and other instances of the class are not touched. Calls that an op
    does not cover (sizes or dtypes that the block itself refuses, masks that differ in number,
    hooks put inside the block later) run the block's own forward.

    A second call changes the backend of blocks that are fused and looks at the others again.

    Args:
        model: any module, such as a Hugging Face VideoMAE, a timm ViT or one of vit-pytorch.
        backend: "auto", "eager", "cpu", "triton" or "cuda", for all blocks.
        strict: raise where a block that looks like ours, or the whole model, stays as it is.

    Returns:
        What was replaced, and what was left alone with the reason.

    Raises:
        TypeError: `model` is no module.
        ValueError: there is no such backend; or `strict` and something would stay. The model is
            as it was before then.
    """
    _check_module("fuse", model)
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"fuse: backend must be one of {('auto', *BACKENDS)}, got {backend!r}")
    report, plan = FuseReport(), []
    for name, module in model.named_modules():
        found = _judge(module)
        if found is None:
            continue
        fused, reason = found
        if fused is None or reason:
            report.left.append(Left(name, type(module).__name__, reason))
        else:
            block = original(fused).__name__
            report.replaced.append(Replaced(name, block, fused.describe(module)))
            plan.append((module, fused))
    if not report.replaced and not report.left:
        report.left.append(Left("", type(model).__name__, "it has no block that stmeta knows"))
    if strict and report.left:
        lines = [
            f"  {item.name or '(model)'} ({item.block}): {item.reason}" for item in report.left
        ]
        raise ValueError("fuse: strict, and these blocks would stay:\n" + "\n".join(lines))
    for module, fused in plan:
        module.__class__ = fused
        module.__dict__.pop("stmeta_backend", None)
        if backend != "auto":
            module.stmeta_backend = backend
    return report


def unfuse(model: nn.Module) -> int:
    """Give the blocks of a model their own classes again.

    Returns:
        How many blocks were fused.

    Raises:
        TypeError: `model` is no module.
        ValueError: a wrapper was built on a fused class; the model stays as it is.
    """
    _check_module("unfuse", model)
    fused = [(module, original(type(module))) for module in model.modules() if _is_fused(module)]
    for module, before in fused:
        module.__class__ = before
        module.__dict__.pop("stmeta_backend", None)
    return len(fused)


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"{function}: model must be a torch.nn.Module, got {kind}; pass the model itself, as "
            f"{function}(model)"
        )


def _is_fused(module: nn.Module) -> bool:
    return isinstance(module, Fused)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _judge(module: nn.Module) -> tuple[type[Fused] | None, str] | None:
    """The fused class of a block, and why it cannot have it; None for what is no block of ours."""
    cls = type(module)
    if issubclass(cls, Fused):
        return (cls, "") if is_own(cls) else None
    if isinstance(module, nn.Conv2d | nn.Conv3d) and not conv.candidate(module):
        return None
    if isinstance(module, nn.Sequential) and not patches.candidate(module):
        return None
    ours = next((base for base in cls.__mro__ if _path(base) in _BLOCKS), None)
    if ours is not None and _path(ours) == _VIT and not _drops_patches(module):
        ours = None
    if ours is None:
        return _judge_structure(module)
    if ours is not cls:
        return None, f"its class is built on {ours.__name__} and may do something else"
    if "forward" in module.__dict__:
        return None, "a forward of its own was put on the instance"
    where, name = _BLOCKS[_path(cls)]
    fused: type[Fused] = getattr(import_module(where), name)
    return fused, fused.why_not(module)


def _drops_patches(module: nn.Module) -> bool:
    """Whether it is timm's VisionTransformer and leaves out tokens in training.

    Told without timm: old releases have the class, but neither patch dropout nor its module.
    """
    dropout = type(getattr(module, "patch_drop", None)).__name__
    return _path(type(module)) == _VIT and dropout in ("PatchDropout", "FusedPatchDropout")


def _judge_structure(module: nn.Module) -> tuple[type[Fused] | None, str] | None:
    """`_judge` for a class that we know by its methods alone."""
    for methods in _STRUCTURES:
        if methods.resembles(module):
            reason = methods.why_not(module)
            return (None, reason) if reason else (fused_class(methods, type(module)), "")
    return None
