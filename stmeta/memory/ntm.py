"""Neural Turing machine: a controller whose heads find rows by content and by location.

Graves et al. 2014, "Neural Turing machines", section 3. What the paper leaves open is a field of
`NTMConfig`. The state is explicit: `y, state = cell(x, state)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmeta.memory._cell import CellConfig
from stmeta.memory.mann import last_output, lstm_gates, select
from stmeta.ops.memory.ntm_step import ntm_step
from stmeta.ops.scan._common import check_lengths, within
from stmeta.ops.scan.ntm_scan import ntm_scan


class NTMState(NamedTuple):
    """All that an `NTMCell` remembers. B batch, N rows, M width, R and W heads, H hidden."""

    memory: Tensor
    """[B, N, M]"""
    weights: Tensor
    """[B, R + W, N], where each head looked at the last step: R read heads, then W write heads."""
    reads: Tensor
    """[B, R * M], what the last step read."""
    h: Tensor
    """[B, H], output of the controller."""
    c: Tensor
    """[B, H], cell of the LSTM; [B, 0] with a feed-forward controller."""

    def detach(self) -> NTMState:
        """The same values, cut from the graph (truncated backpropagation)."""
        return NTMState(*(part.detach() for part in self))


@dataclass(frozen=True, kw_only=True)
class NTMConfig(CellConfig):
    """Sizes, and the choices on which public implementations disagree."""

    controller: Literal["lstm", "feedforward"] = "lstm"
    """The LSTM remembers by itself as well. The feed-forward controller (one tanh layer) has
    nothing but the memory, so its heads show what the memory is used for."""
    hidden: int = 100
    """Width of the controller."""
    rows: int = 128
    """Rows N of the memory."""
    width: int = 20
    """Width M of a row."""
    read_heads: int = 1
    """Heads R that read."""
    write_heads: int = 1
    """Heads W that write. A head of either kind addresses on its own."""
    taps: int = 3
    """Shifts S of a head in one step: 3 = one row back, none, one row on. Odd, at most `rows`."""
    read_first: bool = True
    """Read the memory as it was before this step's write; the paper gives no order. All heads
    address the memory before the write in either case."""
    feed_reads: bool = True
    """The controller sees what the last step read. A feed-forward controller must."""
    tanh_key: bool = False
    """Bound the keys by tanh. The cosine ignores the length of a key either way."""
    tanh_add: bool = False
    """Bound the write vectors by tanh; plain vectors (eq. 4) can hold any value."""
    start_memory: Literal["constant", "learned"] = "constant"
    """First memory: `initial` everywhere, or one learned bias per cell (section 4 of the paper).
    A learned start fixes N. The constant was the best start in Collier & Beel 2018."""
    initial: float = 1e-6
    """The constant of `start_memory`."""
    start_weights: Literal["learned", "first_row", "zero"] = "learned"
    """Weights before the first step, to which the first shift applies: learned (a softmax), all on
    row 0, or none, so that the first step looks by content only."""
    start_controller: Literal["zero", "learned"] = "zero"
    """First reads, h and c: zeros, or learned biases (section 4 of the paper)."""

    def build(self, in_dim: int) -> NTMCell:
        """Make the memory for inputs of width `in_dim`."""
        return NTMCell(in_dim, self)


_Run = tuple[Tensor, NTMState]


class NTMCell(nn.Module):
    """Controller with a memory that is addressed by content and by location.

    One step (Graves et al. 2014, eq. 2-9), per head with key k, strength beta, gate g, shifts s,
    sharpness gamma; write heads have an erase vector e and a write vector a as well:

    1. h = controller(x, r(t-1)); the interface of every head is a linear function of h
    2. w_c = softmax(beta * cos(k, M)), beta = softplus(.)
    3. w_g = g * w_c + (1 - g) * w(t-1), g = sigmoid(.)
    4. w = sharpen(shift(w_g, s), gamma), s = softmax(.), gamma = 1 + softplus(.)
    5. M = M * (1 - w e^T) + w a^T, e = sigmoid(.);  r = w M  (M before the write with `read_first`)
    6. the output is (h, r)

    Args:
        in_dim: width of the input.
        config: sizes and choices.

    Raises:
        ValueError: a size is below 1, `taps` is even or above `rows`, a feed-forward controller
            has no reads, or nothing in the first state tells one row from another.
    """

    def __init__(self, in_dim: int, config: NTMConfig | None = None) -> None:
        super().__init__()
        config = config or NTMConfig()
        _check_config(in_dim, config)
        self.config, self.in_dim, self.rows = config, in_dim, config.rows
        read = config.read_heads * config.width
        lstm = config.controller == "lstm"
        self.out_dim = config.hidden + read
        out = config.hidden * (4 if lstm else 1)
        self.input = nn.Linear(in_dim, out)
        recurrent_in = (config.hidden if lstm else 0) + (read if config.feed_reads else 0)
        self.recurrent = nn.Linear(recurrent_in, out, bias=False)
        self.heads = config.read_heads + config.write_heads
        # Per head: key, strength, sharpness, gate, shifts. Per write head: erase, add.
        self.per_head = config.width + 3 + config.taps
        written = 2 * config.write_heads * config.width
        self.interface = nn.Linear(config.hidden, self.heads * self.per_head + written)
        self._add_starts(read, lstm)
        if lstm:
            with torch.no_grad():  # remember by default: forget gate open (Jozefowicz et al. 2015)
                self.input.bias[config.hidden : 2 * config.hidden] += 1.0

    def _add_starts(self, read: int, lstm: bool) -> None:
        c = self.config
        self.start_memory = self.start_weights = self.start_controller = None
        if c.start_memory == "learned":  # rows of about length 1
            self.start_memory = nn.Parameter(torch.randn(c.rows, c.width) / c.width**0.5)
        if c.start_weights == "learned":  # logits; equal ones would never part, see _check_config
            self.start_weights = nn.Parameter(torch.randn(self.heads, c.rows))
        if c.start_controller == "learned":  # reads, then h and c
            size = read + (2 * c.hidden if lstm else 0)
            self.start_controller = nn.Parameter(torch.zeros(size))

    def initial_state(self, batch: int) -> NTMState:
        """State before the first step, on the device and in the dtype of the weights."""
        c, like = self.config, self.input.weight
        shape = (batch, c.rows, c.width)
        if self.start_memory is None:
            memory = like.new_full(shape, c.initial)
        else:
            memory = self.start_memory.expand(shape)
        if self.start_weights is None:
            weights = like.new_zeros(batch, self.heads, c.rows)
            if c.start_weights == "first_row":
                weights[:, :, 0] = 1.0
        else:
            weights = torch.softmax(self.start_weights, dim=1).expand(batch, -1, -1)
        sizes = (c.read_heads * c.width, c.hidden, c.hidden if c.controller == "lstm" else 0)
        if self.start_controller is None:
            return NTMState(memory, weights, *(like.new_zeros(batch, size) for size in sizes))
        first = self.start_controller
        if not sizes[2]:  # the feed-forward h is an output, never an input
            first = torch.cat([first, first.new_zeros(c.hidden)])
        return NTMState(memory, weights, *first.expand(batch, -1).split(sizes, dim=1))

    def read_weights(self, state: NTMState) -> Tensor:
        """Where the last step read, [B, R, N]."""
        return state.weights[:, : self.config.read_heads]

    def write_weights(self, state: NTMState, before: NTMState) -> Tensor:
        """Where the last step wrote, [B, W, N]."""
        return state.weights[:, self.config.read_heads :]

    def forward(
        self, x: Tensor, state: NTMState | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, NTMState]:
        """Run over a sequence.

        Args:
            x: [B, T, in_dim].
            state: where to start; None = `initial_state`.
            lengths: int64 [B], steps of each sequence; None = T.

        Returns:
            [B, T, H + R * M], controller output and reads of every step, zeros behind a
            sequence's end; and the state behind its last step.

        Raises:
            ValueError: a shape does not fit, or a length is not in 0 ... T.
        """
        if x.ndim != 3 or x.shape[2] != self.in_dim:
            raise ValueError(f"NTMCell: x must be [B, T, {self.in_dim}], got {list(x.shape)}")
        state = state or self.initial_state(x.shape[0])
        if state.memory.shape[0] != x.shape[0]:  # a batch of 1 would be broadcast in silence
            raise ValueError(
                f"NTMCell: state must be of the batch of x, {x.shape[0]}, got "
                f"{state.memory.shape[0]}; use the state of the same episodes"
            )
        check_lengths("NTMCell", lengths, x)
        projected = self.input(within(x, lengths))  # one product for the inputs of all steps
        return (self._scan if self._scans(state) else self._steps)(projected, state, lengths)

    def _scans(self, state: NTMState) -> bool:
        """Whether `ntm_scan` runs the sequence, in one call.

        It knows an LSTM only, and a memory in fp32 or, on a CPU, fp64.
        """
        memory = state.memory
        known = (torch.float32, torch.float64) if memory.is_cpu else (torch.float32,)
        return self.config.controller == "lstm" and memory.dtype in known

    def _scan(self, projected: Tensor, state: NTMState, lengths: Tensor | None) -> _Run:
        config, dtype = self.config, state.memory.dtype
        done = ntm_scan(  # in the dtype of the memory, also under autocast
            projected.to(dtype),
            self.recurrent.weight.to(dtype),
            self.interface.weight.to(dtype),
            self.interface.bias.to(dtype),
            *state,
            lengths=lengths,
            taps=config.taps,
            read_first=config.read_first,
            tanh_key=config.tanh_key,
            tanh_add=config.tanh_add,
        )
        if projected.shape[1] == 0:
            return done.y, state
        last = last_output(done.y, lengths, state.h, state.reads)
        h, reads = last.split([config.hidden, config.read_heads * config.width], dim=1)
        return done.y, NTMState(done.memory, done.weights, reads, h, done.c)

    def _steps(self, projected: Tensor, state: NTMState, lengths: Tensor | None = None) -> _Run:
        batch, steps = projected.shape[:2]
        outputs = []  # unbind, not indexing: x[:, t] fills a zero tensor of all steps in a backward
        for t, now in enumerate(projected.unbind(1)):
            before, state = state, self._step(state, now)
            output = [state.h, state.reads]
            if lengths is not None:
                output = select(t < lengths, output, (0, 0))
                state = NTMState(*select(t < lengths, state, before))
            outputs += output
        y = torch.cat(outputs, dim=1) if outputs else projected.new_zeros(batch, 0)
        return y.view(batch, steps, self.out_dim), state

    def _step(self, state: NTMState, projected: Tensor) -> NTMState:
        config = self.config
        h, c = self._control(state, projected)
        out = self.interface(h)
        addressing = out[:, : self.heads * self.per_head].unflatten(1, (self.heads, self.per_head))
        writing = out[:, self.heads * self.per_head :].unflatten(1, (2, config.write_heads, -1))
        key, positive, gate, shift = addressing.split([config.width, 2, 1, config.taps], dim=2)
        strength, sharpen = F.softplus(positive).unbind(2)
        add = writing[:, 1]
        step = ntm_step(
            state.memory,
            state.weights,
            torch.tanh(key) if config.tanh_key else key,
            strength,
            torch.sigmoid(gate[:, :, 0]),
            torch.softmax(shift, dim=2),
            1 + sharpen,
            torch.sigmoid(writing[:, 0]),
            torch.tanh(add) if config.tanh_add else add,
            reads=config.read_heads,
            read_first=config.read_first,
        )
        return NTMState(step.memory, step.weight, step.read.flatten(1), h, c)

    def _control(self, state: NTMState, projected: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.controller == "feedforward":
            return torch.tanh(projected + self.recurrent(state.reads)), state.c
        recurrent_in = torch.cat([state.h, state.reads], 1) if config.feed_reads else state.h
        return lstm_gates(projected + self.recurrent(recurrent_in), state.c)


def _check_config(in_dim: int, config: NTMConfig) -> None:
    sizes = {"in_dim": in_dim}
    sizes |= {
        name: getattr(config, name)
        for name in ("hidden", "rows", "width", "read_heads", "write_heads", "taps")
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"NTMCell: {name} must be at least 1, got {size}")
    if config.taps % 2 == 0 or config.taps > config.rows:
        raise ValueError(
            f"NTMCell: taps must be odd and at most rows = {config.rows}, got {config.taps}; "
            "3 taps stand for the shifts -1, 0, 1"
        )
    for name, known in (
        ("controller", ("lstm", "feedforward")),
        ("start_memory", ("constant", "learned")),
        ("start_weights", ("learned", "first_row", "zero")),
        ("start_controller", ("zero", "learned")),
    ):
        if getattr(config, name) not in known:
            raise ValueError(
                f"NTMCell: {name} must be one of {known}, got {getattr(config, name)!r}"
            )
    if config.controller == "feedforward" and not config.feed_reads:
        raise ValueError(
            "NTMCell: a feedforward controller must have feed_reads=True, got False; without "
            "reads it sees nothing of the past"
        )
    # With equal rows and no weights, content is uniform and a shift leaves it so. Every row then
    # gets the same values and the same gradients for ever: a memory of one row.
    if config.start_memory == "constant" and config.start_weights == "zero":
        raise ValueError(
            "NTMCell: start_weights must be 'learned' or 'first_row' with start_memory='constant', "
            "got 'zero', which leaves all rows alike for ever; or set start_memory='learned'"
        )
