"""Classification from scratch on a few hundred labelled videos.

    stmeta shard videos --out shards --short-side 72 --fps 4
    python -m stmeta.train --recipe small_set --data shards --fused

Measured on 320 + 176 surveillance clips of railway wagons (4 actions, ten seconds each): macro F1
0.960 on the 176 (95 % interval 0.919 to 0.990), top-1 96.6 %, in 9 minutes on two CPU cores, fp32.
"""

from __future__ import annotations

from stmeta.data.loading.config import LoaderConfig
from stmeta.models.small_vit import DecoderConfig, SmallViTConfig
from stmeta.train.config import RunConfig
from stmeta.train.optim import AdamWConfig
from stmeta.train.tasks.classify import ClassifyConfig
from stmeta.train.tasks.pretrain import PretrainConfig


def recipe() -> RunConfig:
    """Pretrain on the set's own clips, then classify."""
    return RunConfig(
        recipe="small_set",
        model=SmallViTConfig(
            image_size=64,
            frames=8,
            tubelet=4,
            patch=8,
            dim=128,
            depth=6,
            heads=4,
            head_dim=32,
            decoder=DecoderConfig(dim=96, depth=2, heads=3, head_dim=32),
        ),
        clip=LoaderConfig(stride=4, hflip=0.5, crop_scale=(0.5, 1.0)),
        tasks={
            "pretrain": PretrainConfig(epochs=80, mask_ratio=0.75, optim=AdamWConfig(lr=1.5e-3)),
            "classify": ClassifyConfig(
                epochs=100,
                mixup=0.2,
                balanced=True,
                drop_path=0.1,
                views=3,
                optim=AdamWConfig(lr=1e-3, layer_decay=0.85),
            ),
        },
    )
