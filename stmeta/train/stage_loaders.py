"""How the stages read clips: the loader of a split, from the configs of clips and model."""

from __future__ import annotations

from pathlib import Path

import torch

from stmeta.data.loading.loader import ClipLoader, LoaderConfig
from stmeta.models.small_vit import SmallViTConfig
from stmeta.train import distributed
from stmeta.train.config import ClipConfig


def loader_config(
    clip: ClipConfig,
    model: SmallViTConfig,
    *,
    batch_size: int,
    train: bool,
    views: int,
    seed: int,
    device: torch.device,
) -> LoaderConfig:
    """How a stage reads a split; `train` switches shuffling and augmentation on."""
    return LoaderConfig(
        batch_size=batch_size,
        frames=model.frames,
        stride=clip.stride,
        fps=clip.fps,
        size=model.image_size,
        train=train,
        views=views,
        repeats=clip.repeats,
        labelled_share=clip.labelled_share,
        crop_scale=clip.crop_scale,
        crop_ratio=clip.crop_ratio,
        hflip=clip.hflip,
        brightness=clip.brightness,
        contrast=clip.contrast,
        saturation=clip.saturation,
        rand_augment=clip.rand_augment,
        erase_chance=clip.erase_chance,
        erase_area=clip.erase_area,
        erase_ratio=clip.erase_ratio,
        erase_fill=clip.erase_fill,
        decoder=clip.decoder,
        device=device.type,
        threads=clip.threads,
        prefetch=clip.prefetch,
        cache_mib=clip.cache_mib,
        max_error_rate=clip.max_error_rate,
        seed=seed,
    )


def clip_loader(
    root: Path,
    clip: ClipConfig,
    model: SmallViTConfig,
    *,
    batch_size: int,
    train: bool,
    views: int,
    seed: int,
    device: torch.device,
) -> ClipLoader:
    """Make the loader of one split; see `loader_config`."""
    config = loader_config(
        clip,
        model,
        batch_size=batch_size,
        train=train,
        views=views,
        seed=seed,
        device=device,
    )
    return ClipLoader(
        root,
        config,
        rank=distributed.rank() if train else 0,
        world_size=distributed.world_size() if train else 1,
    )
