"""Few-shot classification with a memory-augmented network (Santoro et al. 2016).

The network of the paper is `FewShotClassifierConfig.plain()`. It must first find out that a memory
can bind a clip to a label, which takes tens of thousands of episodes. The defaults build that in:
keys and written rows are linear maps of the clips themselves, and matching begins within 2,000
episodes.

Measured on Gaussian classes (96 features, 16 classes to train on, 8 new ones, 5 ways, 10 clips of
each, Adam 3e-3, batches of 32), accuracy on new classes at the 1st / 2nd / 3rd / 5th / 10th clip:

    episodes                      5,120                 19,968
    defaults             19 / 61 / 81 / 87 / 91   33 / 64 / 80 / 88 / 93
    augment=False        28 / 55 / 72 / 79 / 85
    direct_keys=False *  36 / 34 / 42 / 53 / 63
    bind=False *         33 / 25 / 24 / 22 / 21   (loss 1.593: no use of the memory yet)
    plain(), Adam 1e-3   33 / 27 / 23 / 22 / 21   (loss 1.600; ln 5 = 1.609)
    LSTMConfig() *       31 / 23 / 22 / 21 / 20   (loss 1.606)

* With inputs=("features", "label"), as the controller must then see the clips; the LSTM with
augment=False, and no keys or rows to go into.
One thread makes about 250 episodes per second. The nearest class mean, which knows that the
problem is Gaussian, has 92 at the 5th clip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.memory import CellConfig, MANNConfig
from stmeta.models._encoder import FeatureEncoderConfig

Input = Literal["features", "label", "last_features"]


@dataclass(frozen=True, kw_only=True)
class FewShotClassifierConfig:
    """How features and labels get into a memory. It builds what it configures."""

    memory: CellConfig = field(
        default_factory=lambda: MANNConfig(
            hidden=64, rows=64, width=96, num_heads=2, read_first=False, gate_bias=-2.0
        )
    )
    """Any memory; `stmeta.memory.LSTMConfig` is the baseline without an external one."""
    encoder: FeatureEncoderConfig | None = None
    """Turns what a step shows into features and is trained along; None = it shows features."""
    standardise: bool = True
    """Give every feature zero mean and unit variance over the training classes."""
    inputs: tuple[Input, ...] = ("label",)
    """What the controller sees at a step, side by side: its features, the label of the last step,
    which has just come, and the features of the last step, which that label is of."""
    direct_keys: bool = True
    """Read keys get a linear map of the features, past the controller. For memories with `slots`
    (see `stmeta.memory.Cell`), as `bind` is."""
    bind: bool = True
    """What is written gets the last step's key and its label."""
    augment: bool = True
    """Flip signs of features in training, see `augment_episode_features`. 2 to 9 points more on
    new classes at the 5th clip, in five trials of five; fewer right guesses at the 1st."""

    def __post_init__(self) -> None:
        if "features" not in self.inputs and not (self.direct_keys and self.bind):
            raise ValueError(
                "FewShotClassifierConfig: without direct_keys or without bind the controller must "
                "see the features to read or write them; add 'features' to inputs"
            )
        if self.augment and not self.standardise:
            raise ValueError(
                "FewShotClassifierConfig: augment needs standardise = True, as flipping the sign "
                "of a feature keeps a class in place only around zero; set both or neither"
            )

    @classmethod
    def plain(cls, memory: CellConfig | None = None, **fields: Any) -> FewShotClassifierConfig:
        """The network of the paper: everything goes through the controller.

        Args:
            memory: None = that of the paper.
            **fields: others than those of the paper.
        """
        paper: dict[str, Any] = {
            "memory": memory or MANNConfig(),
            "standardise": False,
            "inputs": ("features", "label"),
            "direct_keys": False,
            "bind": False,
            "augment": False,
        }
        return cls(**paper | fields)

    def build(self, in_dim: int, ways: int) -> FewShotClassifier:
        """Make the classifier of episodes whose steps show `in_dim` numbers."""
        return FewShotClassifier(in_dim, ways, self)


class FewShotClassifier(nn.Module):
    """Names each clip of an episode from the clips and names before it.

    Step t gets the features x_t and the label y_{t-1}: the label of a clip comes one step late
    ("offset" protocol, Santoro et al. 2016, section 2), so that it must be kept with the clip.

    Args:
        in_dim: width D of what a step shows.
        ways: classes in an episode.
        config: memory, encoder and choices.

    Raises:
        ValueError: `direct_keys` or `bind`, and the memory takes no keys.
    """

    def __init__(
        self, in_dim: int, ways: int = 5, config: FewShotClassifierConfig | None = None
    ) -> None:
        super().__init__()
        config = config or FewShotClassifierConfig()
        self.config, self.in_dim, self.ways = config, in_dim, ways
        self.encoder = config.encoder.build(in_dim) if config.encoder else None
        width = in_dim if self.encoder is None else self.encoder.out_dim
        self.standardise = nn.BatchNorm1d(width, affine=False) if config.standardise else None
        widths = {"features": width, "label": ways, "last_features": width}
        self.cell = config.memory.build(sum(widths[name] for name in config.inputs))
        self.slots: tuple[int, int] = getattr(self.cell, "slots", (0, 0))
        direct, size = config.direct_keys or config.bind, self.slots[0] * self.slots[1]
        if direct and not size:
            raise ValueError(
                f"FewShotClassifier: direct_keys and bind need a memory that takes keys, got "
                f"{type(self.cell).__name__}; set both to False"
            )
        self.key = nn.Linear(width, size, bias=False) if direct else None
        self.value = nn.Linear(ways, size, bias=False) if config.bind else None
        if self.value is not None:
            # Labels as long as keys: a row is half clip, half label.
            nn.init.normal_(self.value.weight, std=self.slots[1] ** -0.5)
        self.head = nn.Linear(self.cell.out_dim, ways)

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        generator: torch.Generator | None = None,
        *,
        with_features: bool = False,
    ) -> Any:
        """Classify the steps of episodes.

        Args:
            x: [B, L, in_dim].
            label: int64 [B, L], 0 ... ways - 1; step t sees only those before t.
            generator: source of randomness for `augment`, in training.
            with_features: return the features too.

        Returns:
            logits [B, L, ways]; with features a pair of them and the encoder's, [B, L, D].

        Raises:
            ValueError: shapes do not fit.
        """
        self._check(x, label)
        features = x if self.encoder is None else self.encoder(x)
        # An episode adds to its memory step by step: that stays in the dtype of the weights.
        with torch.autocast(x.device.type, enabled=False):
            logits = self._classify(features, label, generator)
        return (logits, features) if with_features else logits

    def _classify(
        self, features: Tensor, label: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        x = features.to(self.head.weight.dtype)
        if self.standardise is not None:
            x = self.standardise(x.flatten(0, 1)).view_as(x)
        if self.config.augment and self.training:
            x = augment_episode_features(x, generator)
        known = _late(F.one_hot(label, self.ways).to(x.dtype))
        inputs_by_name = {"features": x, "label": known}
        if "last_features" in self.config.inputs:
            inputs_by_name["last_features"] = _late(x)
        inputs = torch.cat([inputs_by_name[name] for name in self.config.inputs], dim=2)
        if self.key is None:
            return self.head(self.cell(inputs)[0])
        clip, add = self.key(x), None
        if self.value is not None:
            add = (_late(clip) + self.value(known)).unflatten(2, self.slots)
        key = clip.unflatten(2, self.slots) if self.config.direct_keys else None
        return self.head(self.cell(inputs, key=key, add=add)[0])

    def _check(self, x: Tensor, label: Tensor) -> None:
        if x.ndim != 3 or x.shape[2] != self.in_dim:
            raise ValueError(
                f"FewShotClassifier: x must be [B, L, {self.in_dim}], got {list(x.shape)}"
            )
        if label.shape != x.shape[:2] or label.dtype != torch.int64:
            raise ValueError(
                f"FewShotClassifier: label must be int64 [B, L] = {list(x.shape[:2])}, got "
                f"{label.dtype} {list(label.shape)}"
            )


def _late(x: Tensor) -> Tensor:
    """[B, L, D], one step later; zeros come first."""
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def matching_loss(features: Tensor, label: Tensor, scale: float = 10.0) -> Tensor:
    """Loss of naming clips by their likeness to those before them; it trains an encoder alone.

    Vinyals et al. 2016, equation 1, with attention by the cosine of features; a clip whose class
    has not come before does not count.

    Args:
        features: [B, L, D].
        label: int64 [B, L].
        scale: of the cosines in the softmax.

    Returns:
        Scalar, a mean; 0 if no class comes twice.
    """
    unit = F.normalize(features.float(), dim=2)
    before = torch.ones(label.shape[1], label.shape[1], device=label.device).tril(-1).bool()
    same = (label[:, :, None] == label[:, None]) & before
    scores = scale * unit @ unit.mT
    of_all, of_class = (scores.masked_fill(~kept, -torch.inf) for kept in (before, same))
    counts = same.any(2)
    loss = of_all[counts].logsumexp(1) - of_class[counts].logsumexp(1)
    return loss.sum() / counts.sum().clamp(min=1)


def augment_episode_features(features: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Flip the signs of random features, the same for all steps of an episode.

    Every episode then shows classes never seen before, with the distances unchanged, so that a
    few training classes cannot be learned by heart.

    Args:
        features: [B, L, D], centred.
        generator: source of randomness; the draw is made on its device.
    """
    device = generator.device if generator is not None else features.device
    sign = torch.randint(
        0, 2, (features.shape[0], 1, features.shape[2]), generator=generator, device=device
    )
    return features * (2 * sign - 1).to(features)
