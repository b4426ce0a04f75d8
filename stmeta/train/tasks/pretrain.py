"""Masked video autoencoder (Feichtenhofer et al. 2022): rebuild the tokens that are left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmeta.data.loading.batch import ClipBatch
from stmeta.data.loading.loader import ClipLoader
from stmeta.models.video_mae import VideoMAE
from stmeta.ops.video.random_masking import MaskMode
from stmeta.train import distributed, plots
from stmeta.train.tasks._base import TaskContext
from stmeta.train.tasks._clips import (
    ClipTask,
    ClipTaskConfig,
    clip_loader,
    encoder_config,
    loader_config,
    to_model,
)
from stmeta.train.tasks._splits import check_split


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(ClipTaskConfig):
    """Masked video autoencoder on the encoder of the run."""

    mask_ratio: float = 0.9
    mask_mode: MaskMode = "random"
    norm_pix: bool = True
    """Targets are normalised within each token."""

    def check(self, context: TaskContext) -> None:
        """Check that there are clips to train and to validate on, and tokens to leave out."""
        encoder_config(context).maskable()
        for split, train in (("train", True), ("val", False)):
            made = loader_config(context, batch_size=self.batch_size, train=train)
            check_split(context, split, made)

    def build(self, context: TaskContext) -> PretrainTask:
        """Make the model and open the loaders."""
        torch.manual_seed(context.seed)
        model = VideoMAE(encoder_config(context).maskable(), norm_pix=self.norm_pix).to(
            context.device
        )
        train, val = (
            clip_loader(
                context, split, loader_config(context, batch_size=self.batch_size, train=train)
            )
            for split, train in (("train", True), ("val", False))
        )
        return PretrainTask(context, self, model, train, val)


class PretrainTask(ClipTask):
    """Reconstruct masked tokens; validation uses the same masks every time."""

    metric, sign = "loss", -1
    console_metrics = ("loss",)

    def __init__(
        self,
        context: TaskContext,
        config: PretrainConfig,
        model: VideoMAE,
        train: ClipLoader,
        val: ClipLoader,
    ) -> None:
        super().__init__(context, config, train, val)
        self.model, self.config = model, config
        times, rows, columns = model.config.grid
        units = {"random": times * rows * columns, "tube": rows * columns, "frame": times}
        self._units = units[config.mask_mode]

    def loss(
        self, batch: ClipBatch, generator: torch.Generator
    ) -> tuple[Tensor, int, dict[str, float]]:
        """Mean squared error of the masked tokens."""
        if self.model.training:
            # As one process with all ranks' clips would: this rank's rows of the same noise.
            torch.rand(distributed.rank() * len(batch) * self._units, generator=generator)
        out = self.model(
            to_model(batch, self.device),
            mask_ratio=self.config.mask_ratio,
            mask_mode=self.config.mask_mode,
            generator=generator,
        )
        return out.loss, len(batch), {}

    def evaluate(self) -> dict[str, float]:
        """The loss on the validation clips."""
        generator = torch.Generator().manual_seed(0)
        total = count = 0.0
        for batch in self.val_batches():
            loss, clips, _ = self.loss(batch, generator)
            total, count = total + float(loss) * clips, count + clips
        return {"loss": total / count}

    def finish(self, record: dict[str, Any], folder: Path) -> None:
        """Leave a picture of one clip rebuilt."""
        super().finish(record, folder)
        batch = next(self.val_batches())
        video = to_model(batch, self.device)[:1]
        self.model.eval()
        original, masked, rebuilt = self.model.reconstruct(
            video, mask_ratio=self.config.mask_ratio, generator=torch.Generator().manual_seed(0)
        )
        plots.reconstruction(original[0], masked[0], rebuilt[0], folder / "reconstruction.png")

    def describe(self, record: dict[str, Any]) -> str:
        """The validation loss."""
        final = record["final"]
        return f"masked MSE {final['loss']:.4f}" if "loss" in final else ""
