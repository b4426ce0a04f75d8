"""DNC: a memory that allocates free rows and remembers the order of its writes.

Graves et al. 2016, "Hybrid computing using a neural network with dynamic external memory",
Nature 538, Methods. What the paper leaves open is a field of `DNCConfig`. The state is explicit:
`y, state = cell(x, state)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.memory._cell import CellConfig
from stmeta.memory.mann import lstm_gates, select
from stmeta.ops.memory.allocation import allocation
from stmeta.ops.memory.content_addressing import EPS, content_addressing
from stmeta.ops.memory.erase_add import erase_add
from stmeta.ops.memory.memory_read import memory_read
from stmeta.ops.memory.temporal_link import temporal_link
from stmeta.ops.scan._common import check_lengths, within


class DNCState(NamedTuple):
    """All that a `DNCCell` remembers. B batch, N rows, M width, R and W heads, H hidden."""

    memory: Tensor
    """[B, N, M]"""
    usage: Tensor
    """[B, N] in [0, 1]: 0 = free."""
    link: Tensor
    """[B, W, N, N]: [i, j] near 1 says that row i was written right after row j. [B, W, 0, 0]
    without `links`."""
    precedence: Tensor
    """[B, W, N], how much each row was the last one written; [B, W, 0] without `links`."""
    write_weights: Tensor
    """[B, W, N], of the last step."""
    read_weights: Tensor
    """[B, R, N], of the last step."""
    reads: Tensor
    """[B, R * M], what the last step read."""
    h: Tensor
    """[B, H], output of the LSTM."""
    c: Tensor
    """[B, H], cell of the LSTM."""

    def detach(self) -> DNCState:
        """The same values, cut from the graph (truncated backpropagation)."""
        return DNCState(*(part.detach() for part in self))


@dataclass(frozen=True, kw_only=True)
class DNCConfig(CellConfig):
    """Sizes, and the choices on which papers and public implementations disagree."""

    hidden: int = 256
    """Width of the LSTM."""
    rows: int = 128
    """Rows N of the memory. The links cost N * N per write head, sample and step."""
    width: int = 64
    """Width M of a row."""
    read_heads: int = 4
    """Heads R that read."""
    write_heads: int = 1
    """Heads W that write; the paper has one. With more, a head allocates as if those before it had
    already taken their rows, or all would take the same one."""
    links: bool = True
    """Keep the temporal links. Without them a head reads by content alone (Franke et al. 2018), and
    a step costs N instead of N * N."""
    feed_reads: bool = True
    """The controller sees what the last step read."""
    clear_freed: bool = False
    """Multiply the rows by the retention psi before the write, so that a freed row is empty too
    (Csordas & Schmidhuber 2019). In the paper it keeps its contents, and content finds it."""
    usage_sees_writes: bool = True
    """Gradients pass from the usage into the write weights, as in the paper's equations. Public
    code cuts them there, to keep allocation from steering earlier writes."""
    eps: float = EPS
    """Added to the norms of the cosine. The usage needs none, see `allocation`."""

    def build(self, in_dim: int) -> DNCCell:
        """Make the memory for inputs of width `in_dim`."""
        return DNCCell(in_dim, self)


class DNCCell(nn.Module):
    """LSTM controller with a differentiable neural computer's memory.

    One step (Graves et al. 2016, Methods); w_w and w_r are write and read weights, f free gates:

    1. psi = prod over read heads of (1 - f * w_r(t-1))
       u = (u + w_w(t-1) - u * w_w(t-1)) * psi
    2. w_w = g_w * (g_a * allocation(u) + (1 - g_a) * softmax(beta * cos(k, M)))
    3. M = M * (1 - w_w e^T) + w_w v^T;  with several write heads all erase, then all add
    4. L, p = temporal_link(L, p, w_w)
    5. w_r = pi_1 * L^T w_r(t-1) + pi_2 * softmax(beta * cos(k, M)) + pi_3 * L w_r(t-1);  r = w_r M
    6. the output is (h, r)

    Gates and e are sigmoids, strengths 1 + softplus, the read modes pi a softmax over 2 W + 1:
    backward along each write head's links, content, forward. Keys and v are plain. The memory
    starts at zero; allocation, which takes the lower row on a tie, tells its rows apart.

    Args:
        in_dim: width of the input.
        config: sizes and choices.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, in_dim: int, config: DNCConfig | None = None) -> None:
        super().__init__()
        config = config or DNCConfig()
        for name in ("hidden", "rows", "width", "read_heads", "write_heads"):
            if getattr(config, name) < 1:
                raise ValueError(f"DNCCell: {name} must be at least 1, got {getattr(config, name)}")
        self.config, self.in_dim, self.rows = config, in_dim, config.rows
        reads, writes, width = config.read_heads, config.write_heads, config.width
        self.out_dim = config.hidden + reads * width
        self.input = nn.Linear(in_dim, 4 * config.hidden)
        recurrent_in = reads * width if config.feed_reads else 0
        self.recurrent = nn.Linear(config.hidden + recurrent_in, 4 * config.hidden, bias=False)
        self.modes = 2 * writes + 1 if config.links else 0
        # Read heads: key, strength, free gate, modes. Write heads: key, erase, add, strength,
        # allocation gate, write gate.
        self.per_read = width + 2 + self.modes
        self.per_write = 3 * width + 3
        self.interface = nn.Linear(config.hidden, reads * self.per_read + writes * self.per_write)
        with torch.no_grad():  # remember by default: forget gate open (Jozefowicz et al. 2015)
            self.input.bias[config.hidden : 2 * config.hidden] += 1.0

    def initial_state(self, batch: int) -> DNCState:
        """Zeros, on the device and in the dtype of the weights."""
        c, like = self.config, self.input.weight
        linked = c.rows if c.links else 0
        return DNCState(
            memory=like.new_zeros(batch, c.rows, c.width),
            usage=like.new_zeros(batch, c.rows),
            link=like.new_zeros(batch, c.write_heads, linked, linked),
            precedence=like.new_zeros(batch, c.write_heads, linked),
            write_weights=like.new_zeros(batch, c.write_heads, c.rows),
            read_weights=like.new_zeros(batch, c.read_heads, c.rows),
            reads=like.new_zeros(batch, c.read_heads * c.width),
            h=like.new_zeros(batch, c.hidden),
            c=like.new_zeros(batch, c.hidden),
        )

    def read_weights(self, state: DNCState) -> Tensor:
        """Where the last step read, [B, R, N]."""
        return state.read_weights

    def write_weights(self, state: DNCState, before: DNCState) -> Tensor:
        """Where the last step wrote, [B, W, N]."""
        return state.write_weights

    def forward(
        self, x: Tensor, state: DNCState | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, DNCState]:
        """Run over a sequence.

        Args:
            x: [B, T, in_dim].
            state: where to start; None = `initial_state`.
            lengths: int64 [B], steps of each sequence; None = T.

        Returns:
            [B, T, H + R * M], LSTM output and reads of every step, zeros behind a sequence's end;
            and the state behind its last step. Under autocast the inputs alone are multiplied in
            bf16: a sequence adds to its memory step by step.

        Raises:
            ValueError: a shape does not fit, or a length is not in 0 ... T.
        """
        if x.ndim != 3 or x.shape[2] != self.in_dim:
            raise ValueError(f"DNCCell: x must be [B, T, {self.in_dim}], got {list(x.shape)}")
        state = state or self.initial_state(x.shape[0])
        if state.memory.shape[0] != x.shape[0]:  # a batch of 1 would be broadcast in silence
            raise ValueError(
                f"DNCCell: state must be of the batch of x, {x.shape[0]}, got "
                f"{state.memory.shape[0]}; use the state of the same episodes"
            )
        check_lengths("DNCCell", lengths, x)
        # One product for all steps.
        projected = self.input(within(x, lengths)).to(state.memory.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return self._steps(projected, state, lengths)

    def _steps(
        self, projected: Tensor, state: DNCState, lengths: Tensor | None
    ) -> tuple[Tensor, DNCState]:
        batch, steps = projected.shape[:2]
        outputs = []  # unbind, not indexing: x[:, t] fills a zero tensor of all steps in a backward
        for t, gates in enumerate(projected.unbind(1)):
            before, state = state, self._step(state, gates)
            output = [state.h, state.reads]
            if lengths is not None:
                output = select(t < lengths, output, (0, 0))
                state = DNCState(*select(t < lengths, state, before))
            outputs += output
        y = torch.cat(outputs, dim=1) if outputs else projected.new_zeros(batch, 0)
        return y.view(batch, steps, self.out_dim), state

    def _step(self, state: DNCState, gates: Tensor) -> DNCState:
        config = self.config
        reads, writes = config.read_heads, config.write_heads
        recurrent_in = torch.cat([state.h, state.reads], 1) if config.feed_reads else state.h
        h, c = lstm_gates(gates + self.recurrent(recurrent_in), state.c)
        out = self.interface(h)
        size = reads * self.per_read
        reading = out[:, :size].unflatten(1, (reads, self.per_read))
        writing = out[:, size:].unflatten(1, (writes, self.per_write))

        free = torch.sigmoid(reading[:, :, config.width + 1])
        retention = _product(1 - free[:, :, None] * state.read_weights)
        written = state.write_weights
        usage = _fill(state.usage, written if config.usage_sees_writes else written.detach())
        usage = usage * retention
        before = state.memory * retention[:, :, None] if config.clear_freed else state.memory
        memory, write_weights = self._write(before, usage, writing)
        link, precedence = state.link, state.precedence
        if config.links:
            link, precedence = temporal_link(link, precedence, write_weights)
        read_weights = self._read_weights(memory, link, state.read_weights, reading)
        read = memory_read(memory, read_weights).flatten(1)
        return DNCState(memory, usage, link, precedence, write_weights, read_weights, read, h, c)

    def _write(self, memory: Tensor, usage: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
        # heads [B, W, 3 M + 3] -> new memory [B, N, M], write weights [B, W, N]
        key, erase, add, scalars = heads.split([self.config.width] * 3 + [3], dim=2)
        strength, gates = 1 + F.softplus(scalars[:, :, 0]), torch.sigmoid(scalars[:, :, 1:])
        content = content_addressing(memory, key, strength, eps=self.config.eps)
        weights = []
        for found, gate in zip(content.unbind(1), gates.unbind(1), strict=True):
            allocate, write = gate.split(1, dim=1)
            free = allocation(usage)
            weights.append(write * torch.lerp(found, free, allocate))
            if len(weights) < self.config.write_heads:  # what the next head finds taken
                usage = _fill(usage, (write * allocate * free)[:, None])
        weight = torch.stack(weights, 1)
        return erase_add(memory, weight, torch.sigmoid(erase), add), weight

    def _read_weights(self, memory: Tensor, link: Tensor, last: Tensor, heads: Tensor) -> Tensor:
        # heads [B, R, M + 2 + modes], last [B, R, N] -> read weights [B, R, N]
        key, scalars, modes = heads.split([self.config.width, 2, self.modes], dim=2)
        strength = 1 + F.softplus(scalars[:, :, 0])
        content = content_addressing(memory, key, strength, eps=self.config.eps)
        if not self.config.links:
            return content
        backward = last[:, None] @ link  # (B, W, R, N)
        forward = last[:, None] @ link.transpose(2, 3)
        looks = torch.cat([backward, content[:, None], forward], dim=1)  # (B, 2 W + 1, R, N)
        shares = torch.softmax(modes, dim=2).transpose(1, 2)[..., None]
        return (shares * looks).sum(1)


def _product(factors: Tensor) -> Tensor:
    # Over axis 1. The backward of Tensor.prod looks for zeros and so waits for the device.
    return reduce(torch.mul, factors.unbind(1))


def _fill(usage: Tensor, weights: Tensor) -> Tensor:
    # u + w - u w, head by head: exact where both are small, unlike 1 - (1 - u) (1 - w).
    for weight in weights.unbind(1):
        usage = torch.addcmul(usage, 1 - usage, weight)
    return usage
