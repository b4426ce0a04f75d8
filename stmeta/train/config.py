"""What a training run is made of: frozen dataclasses, one per concern.

A recipe (`stmeta.recipes`) is a function that returns a `TrainConfig`; the command line is made
from the same fields (`python -m stmeta.train --help`). Nothing reads a global.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stmeta._util.from_json import build
from stmeta.memory.dnc import DNCConfig
from stmeta.memory.mann import MANNConfig
from stmeta.memory.ntm import NTMConfig
from stmeta.models.mann import FewShotConfig as FewShotHead
from stmeta.models.small_vit import PRESETS, SmallViTConfig

StageName = Literal["pretrain", "classify", "classify_masked", "fewshot"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine to `min_lr`."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the last step."""
    warmup: float = 0.1
    """Share of all steps spent warming up."""
    weight_decay: float = 0.05
    """Applied to matrices only: no decay on biases, norms, tokens, positions."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    layer_decay: float = 1.0
    """Learning rate of encoder layer i of L is multiplied by layer_decay ** (L + 1 - i)."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How a clip is cut from a video and augmented. Its frames and size are the model's."""

    stride: int = 1
    """Source frames from one clip frame to the next."""
    fps: float | None = None
    """Frames of a clip a second, picked by their times, in place of `stride`: for videos of
    different or varying rates."""
    repeats: int = 1
    """Training clips of one video in a batch: the same frames, decoded once, each augmented anew
    (Feichtenhofer et al. 2022, section 3). Batch sizes count clips and are multiples of it, and an
    epoch is so many times as long."""
    labelled_share: float | None = None
    """Part of every training batch that has a label, where the split has unlabelled videos too, so
    that a batch is never without; None = as they come."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area share of the random crop (training only)."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    """Chance of a left-right flip. 0 where the direction of motion is the label."""
    brightness: float = 0.0
    """Colour jitter: a factor in [1 - brightness, 1 + brightness] for each training clip ..."""
    contrast: float = 0.0
    """... another for the distance from its mean grey ..."""
    saturation: float = 0.0
    """... and a third for the distance of each pixel from its grey."""
    rand_augment: str = ""
    """RandAugment of training clips, as timm writes it; fine-tuning uses rand-m7-mstd0.5-inc1.
    "" = none."""
    erase_chance: float = 0.0
    """Random erasing: chance that one box is erased from all frames of a training clip."""
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    """Share of the picture that is erased."""
    erase_ratio: tuple[float, float] = (0.3, 10 / 3)
    """Width / height of the box."""
    erase_fill: Literal["noise", "mean"] = "noise"
    """What is put there: random pixels, or the clip's mean colour."""
    decoder: Literal["auto", "dali", "pyav"] = "auto"
    threads: int = 2
    prefetch: int = 2
    cache_mib: int = 1024
    """Memory for decoded videos, so that small sets are decoded once."""
    max_error_rate: float = 0.05
    """Share of unreadable samples above which the run stops with their list."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Stage 1, masked video autoencoder (Feichtenhofer et al. 2022)."""

    epochs: float = 40
    batch_size: int = 32
    mask_ratio: float = 0.9
    mask_mode: Literal["random", "tube", "frame"] = "random"
    norm_pix: bool = True
    optim: OptimConfig = field(default_factory=OptimConfig)
    evals: int = 5
    """Validations over the stage, evenly spaced, the last at its end."""


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Stage 2, action classification on the pretrained encoder."""

    epochs: float = 40
    batch_size: int = 32
    init: Literal["pretrain", "scratch"] = "pretrain"
    mask_ratio: float = 0.0
    """Share of tokens dropped in training; evaluation always sees all of them."""
    mixup: float = 0.0
    """Alpha of the Beta distribution of mixup; 0 turns it off."""
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    dropout: float = 0.0
    balanced: bool = False
    """Weigh classes by the inverse square root of their frequency in the loss."""
    views: int = 1
    """Clips per video at evaluation, spread over its length; logits are averaged."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    evals: int = 5


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Stage 3, few-shot episodes with a memory-augmented network (Santoro et al. 2016)."""

    encoder: Literal["classify", "pretrain", "scratch"] = "classify"
    """Stage whose encoder turns clips into features. It stays frozen."""
    ways: int = 5
    instances: int = 10
    """Clips of each class in one episode."""
    episodes: int = 20_000
    batch_size: int = 32
    views: int = 4
    """Augmented clips per training video in the table of features."""
    test_episodes: int = 1000
    head: FewShotHead = field(default_factory=FewShotHead)
    """The memory and how features and labels get into it."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.0, clip_grad=10.0)
    )
    evals: int = 5


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has: where it writes and how it executes."""

    recipe: str = "demo"
    """Name of the recipe that these values came from."""
    out: Path | None = None
    """Folder of the run; none = runs/<recipe>."""
    fused: bool = False
    """Use the fused ops; off = the eager reference."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    """Compile the model with torch.compile."""
    seed: int = 0
    max_steps: int = 0
    """Stop every stage after so many steps; 0 = no limit. For trying things out."""
    save_every: int = 100
    """Steps between checkpoints."""

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self.out or Path("runs") / self.recipe


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """The stages of video learning: data and models."""

    data: Path | None = None
    """Folder with train/, val/ (and heldout/) shards; none = the built-in motion clips."""
    stage: tuple[StageName, ...] = ("pretrain", "classify", "classify_masked", "fewshot")
    """Stages to run, in order."""
    model: SmallViTConfig = PRESETS["tiny"]
    """Encoder and decoder; frames, size, mean and std of the clips are set here too."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    classify_masked: ClassifyConfig = field(default_factory=ClassifyConfig)
    fewshot: FewShotConfig = field(default_factory=FewShotConfig)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(RunConfig):
    """A memory alone, on episodes of images or on sequences of bits."""

    task: Literal["omniglot", "copy", "repeat_copy", "recall"] = "copy"
    data: Path | None = None
    """Folder with Omniglot: the official zips, or the two arrays. Sequences need none."""
    memory: Literal["mann", "ntm", "dnc", "lstm"] = "mann"
    mann: MANNConfig = field(default_factory=MANNConfig)
    ntm: NTMConfig = field(default_factory=NTMConfig)
    dnc: DNCConfig = field(default_factory=DNCConfig)
    lstm_hidden: int = 200
    filters: tuple[int, ...] = ()
    """Omniglot, with `encoder`: of convolutions in front of its layers, 3 x 3 with stride 2."""
    encoder: tuple[int, ...] = ()
    """Omniglot: widths of the layers that turn an image into features, from which keys and written
    rows come directly. () = the network of the paper, where all goes through the LSTM."""
    augment: bool = False
    """With an encoder: flip the signs of random features, the same in a whole episode."""
    matching: float = 0.0
    """With an encoder: weight of a loss on its features alone (`stmeta.models.mann.matching_loss`),
    for memories that give it no gradient to begin with."""
    steps: int = 6250
    batch_size: int = 16
    ways: int = 5
    """Classes of an episode."""
    instances: int = 10
    """Images of each class in an episode."""
    image_size: int = 20
    shift: int = 2
    """Largest shift of a training image, in pixels."""
    rotation: float = math.pi / 16
    """Largest rotation of a training image, in radians."""
    test_episodes: int = 1280
    max_length: int = 20
    """Longest sequence (or most items) in training."""
    test_lengths: tuple[int, ...] = (10, 20, 40, 60)
    bits: int = 8
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            lr=1e-3, warmup=0.0, weight_decay=0.0, betas=(0.9, 0.999), clip_grad=10.0
        )
    )
    evals: int = 10


def to_json(config: Any) -> str:
    """Serialise a config, paths as strings."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str)


def from_json(text: str | bytes) -> TrainConfig | MemoryConfig:
    """Read back what `to_json` wrote.

    Raises:
        ValueError: it is no JSON, names a field that this version does not know, or a value is of
            another type than its field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: it is no JSON ({type(error).__name__}: {error})") from error
    kind = MemoryConfig if isinstance(values, dict) and "task" in values else TrainConfig
    return build(kind, values)
