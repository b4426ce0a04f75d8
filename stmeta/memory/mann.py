"""MANN: an LSTM with an external memory, written where it was least recently used.

Santoro et al. 2016, "Meta-learning with memory-augmented neural networks", section 3. What the
paper leaves open is a field of `MANNConfig`. The state is explicit: `y, state = cell(x, state)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stmeta.memory._cell import CellConfig
from stmeta.ops.scan._common import check_lengths, within
from stmeta.ops.scan.lrua_scan import lrua_scan


class MANNState(NamedTuple):
    """All that a `MANNCell` remembers. B batch, N rows, M width, R heads, H hidden."""

    memory: Tensor
    """[B, N, M]"""
    usage: Tensor
    """[B, N], decayed sum of read and write weights; without gradient."""
    read_weights: Tensor
    """[B, R, N], of the last step."""
    reads: Tensor
    """[B, R * M], what the last step read."""
    h: Tensor
    """[B, H], output of the LSTM."""
    c: Tensor
    """[B, H], cell of the LSTM."""

    def detach(self) -> MANNState:
        """The same values, cut from the graph (truncated backpropagation)."""
        return MANNState(*(part.detach() for part in self))


@dataclass(frozen=True, kw_only=True)
class MANNConfig(CellConfig):
    """Sizes, and the choices on which public implementations disagree."""

    hidden: int = 200
    """Width of the LSTM."""
    rows: int = 128
    """Rows N of the memory."""
    width: int = 40
    """Width M of a row."""
    num_heads: int = 4
    """Heads R, each with a read and a write."""
    decay: float = 0.99
    """How slowly usage fades, gamma in eq. 4."""
    read_first: bool = True
    """Read the memory as it was before this step's write. A read after the write mostly finds the
    row just written, whose label has not come yet. Where clip and label are written together, one
    step late (`FewShotClassifierConfig.bind`), read after the write: a clip of the same class as
    the last one then finds it."""
    write: Literal["add", "key"] = "add"
    """What is written: a vector of its own, or the read key (eq. 8 of the paper)."""
    least_used: Literal["per_head", "shared"] = "per_head"
    """Head i writes to the i-th least used row, or every head to all R of them."""
    strength: bool = True
    """Sharpen the read softmax by beta = 1 + 10 softplus(.). Without it a cosine in [-1, 1] spreads
    a read over all rows."""
    feed_reads: bool = True
    """The controller sees what the last step read."""
    initial: float = 1e-6
    """Value of the memory at the start."""
    gate_bias: float = 0.0
    """Added to the first value of the write gates: below 0 new rows are preferred to rows just
    read."""

    def build(self, in_dim: int) -> MANNCell:
        """Make the memory for inputs of width `in_dim`."""
        return MANNCell(in_dim, self)


class MANNCell(nn.Module):
    """LSTM controller with least-recently-used-access (LRUA) memory.

    One step (Santoro et al. 2016, eq. 2-8), per head with key k, write vector a, gate alpha:

    1. w_w = sigmoid(alpha) * w_r(t-1) + (1 - sigmoid(alpha)) * w_lu(t-1)
    2. the least used rows are set to zero, then M += sum over heads of w_w a^T
    3. w_r = softmax(beta * cos(k, M)),  r = w_r M  (before step 2 with `read_first`)
    4. usage = decay * usage + w_r + w_w;  w_lu marks the least used rows, the lower row on a tie
    5. the output is (h, r)

    Args:
        in_dim: width of the input.
        config: sizes and choices.
    """

    def __init__(self, in_dim: int, config: MANNConfig | None = None) -> None:
        super().__init__()
        config = config or MANNConfig()
        if config.num_heads > config.rows:
            raise ValueError(
                f"MANNCell: rows must be at least num_heads = {config.num_heads}, got {config.rows}"
            )
        self.config, self.in_dim, self.rows = config, in_dim, config.rows
        self.slots = (config.num_heads, config.width)
        recurrent_in = config.num_heads * config.width if config.feed_reads else 0
        self.out_dim = config.hidden + config.num_heads * config.width
        self.input = nn.Linear(in_dim, 4 * config.hidden)
        self.recurrent = nn.Linear(config.hidden + recurrent_in, 4 * config.hidden, bias=False)
        vectors = 2 if config.write == "add" else 1
        # Per head: key, write vector, strength, gate.
        self.per_head = vectors * config.width + 2
        self.interface = nn.Linear(config.hidden, config.num_heads * self.per_head)
        with torch.no_grad():  # remember by default: forget gate open (Jozefowicz et al. 2015)
            self.input.bias[config.hidden : 2 * config.hidden] += 1.0
            self.interface.bias.view(config.num_heads, -1)[:, -1] += config.gate_bias

    def initial_state(self, batch: int) -> MANNState:
        """State before the first step, on the device of the weights; fp32, or fp64 as they are."""
        c, weight = self.config, self.input.weight
        like = weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))
        return MANNState(
            memory=like.new_full((batch, c.rows, c.width), c.initial),
            usage=like.new_zeros(batch, c.rows),
            read_weights=like.new_zeros(batch, c.num_heads, c.rows),
            reads=like.new_zeros(batch, c.num_heads * c.width),
            h=like.new_zeros(batch, c.hidden),
            c=like.new_zeros(batch, c.hidden),
        )

    def read_weights(self, state: MANNState) -> Tensor:
        """Where the last step read, [B, R, N]."""
        return state.read_weights

    def write_weights(self, state: MANNState, before: MANNState) -> Tensor:
        """Where the last step wrote, [B, 1, N]: the sum over heads."""
        # usage = decay * usage + read weights + write weights
        written = state.usage - self.config.decay * before.usage - state.read_weights.sum(1)
        return written[:, None]

    def forward(
        self,
        x: Tensor,
        state: MANNState | None = None,
        *,
        key: Tensor | None = None,
        add: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, MANNState]:
        """Run over a sequence.

        Args:
            x: [B, T, in_dim].
            state: where to start; None = `initial_state`.
            key: [B, T, R, M], added to the controller's read keys.
            add: [B, T, R, M], added to the controller's write vectors.
            lengths: int64 [B], steps of each sequence; None = T.

        Returns:
            [B, T, H + R * M], LSTM output and reads of every step, zeros behind a sequence's end;
            and the state behind its last step.

        Raises:
            ValueError: a shape does not fit.
        """
        self._check(x, key=key, add=add)
        state = state or self.initial_state(x.shape[0])
        config = self.config
        # One product for the inputs of all steps; then the episode, in one call. An episode adds to
        # its memory step by step: in fp32, also under autocast, but for the products of a CPU.
        dtype = state.memory.dtype
        check_lengths("MANNCell", lengths, x)
        x = within(x, lengths)
        key, add = (None if more is None else within(more, lengths) for more in (key, add))
        products = torch.bfloat16 if _multiplies_bf16(state.memory) else dtype
        episode = lrua_scan(
            self.input(x).to(dtype),
            self.recurrent.weight.to(products),
            self.interface.weight.to(products),
            self.interface.bias.to(dtype),
            state.memory,
            state.usage,
            state.read_weights,
            state.reads,
            state.h,
            state.c,
            key=None if key is None else key.to(dtype),
            add=None if add is None else add.to(dtype),
            lengths=lengths,
            decay=config.decay,
            read_first=config.read_first,
            shared=config.least_used == "shared",
            strength=config.strength,
            write_key=config.write == "key",
        )
        y = episode.y
        if x.shape[1] == 0:
            return y, state
        last = last_output(y, lengths, state.h, state.reads)
        h, reads = last.split([config.hidden, config.num_heads * config.width], dim=1)
        return y, MANNState(episode.memory, episode.usage, episode.weight, reads, h, episode.c)

    def _check(self, x: Tensor, **extra: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[2] != self.in_dim:
            raise ValueError(f"MANNCell: x must be [B, T, {self.in_dim}], got {list(x.shape)}")
        want = (*x.shape[:2], self.config.num_heads, self.config.width)
        for name, tensor in extra.items():
            if tensor is not None and tuple(tensor.shape) != want:
                raise ValueError(
                    f"MANNCell: {name} must be [B, T, R, M] = {list(want)} to match x and the "
                    f"config, got {list(tensor.shape)}"
                )


def last_output(y: Tensor, lengths: Tensor | None, h: Tensor, reads: Tensor) -> Tensor:
    """Row of y [B, T, H + R * M] at each sequence's last step; h and reads where it has none."""
    if lengths is None:
        return y[:, -1]
    last = y[torch.arange(len(y), device=y.device), (lengths - 1).clamp(min=0)]
    return torch.where((lengths > 0)[:, None], last, torch.cat([h, reads], 1))


def select(on: Tensor, new: Sequence[Tensor], old: Sequence[Any]) -> list[Tensor]:
    """New numbers for the samples that are `on`, bool [B], and old ones for the others."""
    pairs = zip(new, old, strict=True)
    return [torch.where(on.view(-1, *[1] * (x.ndim - 1)), x, y) for x, y in pairs]


def _multiplies_bf16(memory: Tensor) -> bool:
    """Whether autocast asks for products in bf16, where `lrua_scan` has them."""
    asked = memory.is_cpu and memory.dtype == torch.float32 and torch.is_autocast_enabled("cpu")
    return asked and torch.get_autocast_dtype("cpu") == torch.bfloat16


def lstm_gates(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The point-wise part of an LSTM; `gates` [B, 4 H] in the order input, forget, cell, output."""
    i, f, g, o = gates.chunk(4, dim=1)
    c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
    return torch.sigmoid(o) * torch.tanh(c), c
