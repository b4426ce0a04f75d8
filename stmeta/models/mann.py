"""Few-shot classification with a memory-augmented network (Santoro et al. 2016).

The network of the paper is `FewShotConfig.plain()`. It must first find out that a memory can bind a
clip to a label, which takes tens of thousands of episodes. The defaults build that in: keys and
written rows are linear maps of the clips themselves, and matching begins within 2,000 episodes.

Measured on Gaussian classes (96 features, 16 classes to train on, 8 new ones, 5 ways, 10 clips of
each, Adam 3e-3, batches of 32), accuracy on new classes at the 1st / 2nd / 3rd / 5th / 10th clip:

    episodes                      5,120                 19,968
    defaults             19 / 61 / 81 / 87 / 91   33 / 64 / 80 / 88 / 93
    augment=False        28 / 55 / 72 / 79 / 85
    direct_keys=False *  36 / 34 / 42 / 53 / 63
    bind=False *         33 / 25 / 24 / 22 / 21   (loss 1.593: no use of the memory yet)
    plain(), Adam 1e-3   33 / 27 / 23 / 22 / 21   (loss 1.600; ln 5 = 1.609)
    memory="lstm" **     31 / 23 / 22 / 21 / 20   (loss 1.606)

* With controller_features=True, as the LSTM must then see the clips. ** With augment=False and
bind=False.
One thread makes about 250 episodes per second. The nearest class mean, which knows that the
problem is Gaussian, has 92 at the 5th clip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.memory.lstm import LSTMCell
from stmeta.memory.mann import MANNCell, MANNConfig


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """How features and labels get into the memory."""

    memory: Literal["mann", "lstm"] = "mann"
    """"lstm" is the baseline without an external memory."""
    mann: MANNConfig = field(
        default_factory=lambda: MANNConfig(hidden=64, rows=64, width=96, reads=2, read_first=False)
    )
    standardise: bool = True
    """Give every feature zero mean and unit variance over the training classes."""
    direct_keys: bool = True
    """Read keys get a linear map of the features, past the LSTM."""
    bind: bool = True
    """What is written gets the last clip's key and its label, which has just come. The LSTM alone
    sees the last clip beside this one."""
    controller_features: bool = False
    """The LSTM sees the features; otherwise it sees labels and what was read."""
    gate_bias: float = -2.0
    """Start value of the write gate: below 0 new rows are preferred to rows just read."""
    augment: bool = True
    """Flip signs of features in training, see `augment_episode_features`. 2 to 9 points more on
    new classes at the 5th clip, in five trials of five; fewer right guesses at the 1st."""

    def __post_init__(self) -> None:
        blind = not self.controller_features and not (self.direct_keys and self.bind)
        if blind and self.memory == "mann":
            raise ValueError(
                "FewShotConfig: without direct_keys or without bind the LSTM must see the clips to "
                "read or write them; set controller_features = True"
            )
        if self.augment and not self.standardise and self.memory == "mann":
            raise ValueError(
                "FewShotConfig: augment needs standardise = True, as flipping the sign of a "
                "feature keeps a class in place only around zero; set both or neither"
            )

    @classmethod
    def plain(cls) -> FewShotConfig:
        """The network of the paper: everything goes through the LSTM."""
        return cls(
            mann=MANNConfig(),
            standardise=False,
            direct_keys=False,
            bind=False,
            controller_features=True,
            gate_bias=0.0,
            augment=False,
        )


class FewShotMANN(nn.Module):
    """Names each clip of an episode from the clips and names before it.

    Step t gets the features x_t and the label y_{t-1}: the label of a clip comes one step late
    ("offset" protocol, Santoro et al. 2016, section 2), so that it must be kept with the clip.

    Args:
        in_dim: width D of the features.
        ways: classes in an episode.
        config: sizes and choices.
    """

    def __init__(self, in_dim: int, ways: int = 5, config: FewShotConfig | None = None) -> None:
        super().__init__()
        config = config or FewShotConfig()
        self.config, self.in_dim, self.ways = config, in_dim, ways
        self.standardise = nn.BatchNorm1d(in_dim, affine=False) if config.standardise else None
        mann = config.mann
        if config.memory == "lstm":
            clips = 2 if config.bind else 1
            self.cell: MANNCell | LSTMCell = LSTMCell(clips * in_dim + ways, mann.hidden)
        else:
            self.cell = MANNCell(ways + (in_dim if config.controller_features else 0), mann)
            with torch.no_grad():
                self.cell.interface.bias.view(mann.reads, -1)[:, -1] += config.gate_bias
        slots = mann.reads * mann.width
        direct = config.memory == "mann"
        self.key = (
            nn.Linear(in_dim, slots, bias=False)
            if direct and (config.direct_keys or config.bind)
            else None
        )
        self.value = nn.Linear(ways, slots, bias=False) if direct and config.bind else None
        if self.value is not None:
            # Labels as long as keys: a row is half clip, half label.
            nn.init.normal_(self.value.weight, std=mann.width**-0.5)
        self.head = nn.Linear(self.cell.out_dim, ways)

    def forward(
        self,
        features: Tensor,
        label: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Classify the steps of episodes.

        Args:
            features: [B, L, D].
            label: int64 [B, L], 0 ... ways - 1; step t sees only those before t.
            generator: source of randomness for `augment`, in training.

        Returns:
            logits [B, L, ways].

        Raises:
            ValueError: shapes do not fit.
        """
        self._check(features, label)
        # An episode adds to its memory step by step: that stays in the dtype of the weights.
        with torch.autocast(features.device.type, enabled=False):
            return self._classify(features, label, generator)

    def _classify(
        self, features: Tensor, label: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        batch, length = label.shape
        x = features.to(self.head.weight.dtype)
        if self.standardise is not None:
            x = self.standardise(x.flatten(0, 1)).view_as(x)
        if self.config.augment and self.training:
            x = augment_episode_features(x, generator)
        known = F.one_hot(label[:, :-1], self.ways).to(x.dtype)
        known = F.pad(known, (0, 0, 1, 0))  # [B, L, ways], nothing is known at the first step
        seen = [x] if self.config.controller_features or self.config.memory == "lstm" else []
        inputs = torch.cat([*seen, known], dim=2)
        if isinstance(self.cell, LSTMCell):
            if self.config.bind:
                inputs = torch.cat([inputs, F.pad(x[:, :-1], (0, 0, 1, 0))], 2)
            return self.head(self.cell(inputs)[0])
        key = add = None
        if self.key is not None:
            slots = (batch, length, self.config.mann.reads, self.config.mann.width)
            clip = self.key(x)
            key = clip.view(slots) if self.config.direct_keys else None
            if self.value is not None:
                last = F.pad(clip[:, :-1], (0, 0, 1, 0))
                add = (last + self.value(known)).view(slots)
        return self.head(self.cell(inputs, key=key, add=add)[0])

    def _check(self, features: Tensor, label: Tensor) -> None:
        if features.ndim != 3 or features.shape[2] != self.in_dim:
            raise ValueError(
                f"FewShotMANN: features must be [B, L, {self.in_dim}], got {list(features.shape)}"
            )
        if label.shape != features.shape[:2] or label.dtype != torch.int64:
            raise ValueError(
                f"FewShotMANN: label must be int64 [B, L] = {list(features.shape[:2])}, got "
                f"{label.dtype} {list(label.shape)}"
            )


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
