from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stmeta.memory import LSTMCell, MANNCell, MANNConfig
from stmeta.memory.mann import MANNState, lstm_gates
from stmeta.ops.memory.content_addressing import EPS
from tests.memory._reference import check_empty, check_state_dict, check_two_runs

CHOICES = [
    {},
    {"read_first": False},
    {"write": "key"},
    {"least_used": "shared"},
    {"strength": False},
    {"feed_reads": False},
    {"num_heads": 1},
    {
        "num_heads": 3,
        "least_used": "shared",
        "write": "key",
        "read_first": False,
        "strength": False,
    },
]


def make_cell(in_dim=5, *, seed=0, **choices):
    torch.manual_seed(seed)
    sizes = {"hidden": 7, "rows": 6, "width": 4, "num_heads": 2, "decay": 0.9}
    return MANNCell(in_dim, MANNConfig(**(sizes | choices))).double()


def softplus(v):
    return math.log1p(math.exp(v))


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def slow_step(cell, x, state, key, add):
    """One sample, one step, in loops over Python floats, from the equations of the paper."""
    config = cell.config
    n, m, r = config.rows, config.width, config.num_heads
    fed = state["h"] + (state["reads"] if config.feed_reads else [])
    weight = torch.cat([cell.input.weight, cell.recurrent.weight], 1).tolist()
    given = x + fed
    gates = [
        sum(w * v for w, v in zip(row, given, strict=True)) + b
        for row, b in zip(weight, cell.input.bias.tolist(), strict=True)
    ]
    hidden = config.hidden
    i, f, g, o = (gates[j * hidden : (j + 1) * hidden] for j in range(4))
    c = [sigmoid(f[j]) * state["c"][j] + sigmoid(i[j]) * math.tanh(g[j]) for j in range(hidden)]
    h = [sigmoid(o[j]) * math.tanh(c[j]) for j in range(hidden)]
    out = [
        sum(w * v for w, v in zip(row, h, strict=True)) + b
        for row, b in zip(cell.interface.weight.tolist(), cell.interface.bias.tolist(), strict=True)
    ]
    size = len(out) // r
    heads = [out[j * size : (j + 1) * size] for j in range(r)]
    keys = [[heads[j][d] + key[j][d] for d in range(m)] for j in range(r)]
    source = keys if config.write == "key" else [heads[j][m : 2 * m] for j in range(r)]
    adds = [[source[j][d] + add[j][d] for d in range(m)] for j in range(r)]

    # Write: the least used rows, lower row first on a tie.
    order = sorted(range(n), key=lambda row: (state["usage"][row], row))[:r]
    memory = [[0.0] * m if row in order else list(state["memory"][row]) for row in range(n)]
    w_write = []
    for j in range(r):
        gate = sigmoid(heads[j][-1])
        marked = order if config.least_used == "shared" else [order[j]]
        w_write.append(
            [
                gate * state["w_read"][j][row] + (1 - gate) * (1.0 if row in marked else 0.0)
                for row in range(n)
            ]
        )
        for row in range(n):
            for d in range(m):
                memory[row][d] += w_write[j][row] * adds[j][d]

    look = state["memory"] if config.read_first else memory
    w_read, reads = [], []
    for j in range(r):
        beta = 1 + 10 * softplus(heads[j][-2]) if config.strength else 1.0
        size_k = math.sqrt(sum(v * v for v in keys[j]))
        logits = []
        for row in range(n):
            size_m = math.sqrt(sum(v * v for v in look[row]))
            dot = sum(a * b for a, b in zip(keys[j], look[row], strict=True))
            logits.append(beta * dot / ((size_k + EPS) * (size_m + EPS)))
        total = sum(math.exp(v) for v in logits)
        w_read.append([math.exp(v) / total for v in logits])
        reads += [sum(w_read[j][row] * look[row][d] for row in range(n)) for d in range(m)]
    usage = [
        config.decay * state["usage"][row] + sum(w_read[j][row] + w_write[j][row] for j in range(r))
        for row in range(n)
    ]
    return {"memory": memory, "usage": usage, "w_read": w_read, "reads": reads, "h": h, "c": c}


@pytest.mark.parametrize(
    "choices", CHOICES, ids=lambda c: ",".join(map(str, c.values())) or "default"
)
def test_matches_the_equations_in_loops(choices):
    cell = make_cell(**choices)
    config = cell.config
    batch, steps = 2, 9  # more steps than rows: rows are overwritten
    x = torch.randn(batch, steps, 5, dtype=torch.float64)
    key, add = torch.randn(2, batch, steps, config.num_heads, config.width, dtype=torch.float64)
    y, state = cell(x, key=key, add=add)
    first = cell.initial_state(batch)
    for b in range(batch):
        slow = {
            "memory": first.memory[b].tolist(),
            "usage": first.usage[b].tolist(),
            "w_read": first.read_weights[b].tolist(),
            "reads": first.reads[b].tolist(),
            "h": first.h[b].tolist(),
            "c": first.c[b].tolist(),
        }
        for t in range(steps):
            slow = slow_step(cell, x[b, t].tolist(), slow, key[b, t].tolist(), add[b, t].tolist())
            expected = torch.tensor(slow["h"] + slow["reads"], dtype=torch.float64)
            torch.testing.assert_close(y[b, t], expected, rtol=1e-9, atol=1e-10)
        for name, part in zip(("memory", "usage", "w_read", "reads", "h", "c"), state, strict=True):
            expected = torch.tensor(slow[name], dtype=torch.float64)
            torch.testing.assert_close(part[b], expected, rtol=1e-9, atol=1e-10)


def test_controller_is_torchs_lstm():
    lstm = torch.nn.LSTMCell(3, 5).double()
    x, h, c = (torch.randn(4, n, dtype=torch.float64) for n in (3, 5, 5))
    gates = F.linear(x, lstm.weight_ih, lstm.bias_ih) + F.linear(h, lstm.weight_hh, lstm.bias_hh)
    for ours, theirs in zip(lstm_gates(gates, c), lstm(x, (h, c)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_run_equals_two_with_the_state_passed_on():
    cell = make_cell()
    check_two_runs(cell, torch.randn(3, 8, 5, dtype=torch.float64), 3)


def test_samples_of_a_batch_do_not_touch_each_other():
    cell = make_cell()
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    y, _ = cell(x)
    alone, _ = cell(x[2:3])
    torch.testing.assert_close(y[2:3], alone)


def test_a_closed_gate_writes_to_the_least_used_row_only():
    cell = make_cell(num_heads=1)
    with torch.no_grad():
        cell.interface.bias[-1] = -50.0  # sigmoid(alpha) = 0
    state = cell.initial_state(1)
    usage = torch.tensor([[5.0, 4.0, 1.0, 6.0, 7.0, 8.0]], dtype=torch.float64)
    memory = torch.randn(1, 6, 4, dtype=torch.float64)
    _, after = cell(
        torch.randn(1, 1, 5, dtype=torch.float64), state._replace(usage=usage, memory=memory)
    )
    changed = (after.memory != memory).any(2)[0]
    assert changed.tolist() == [False, False, True, False, False, False]


def test_an_open_gate_writes_where_the_last_step_read():
    cell = make_cell(num_heads=1)
    with torch.no_grad():
        cell.interface.bias[-1] = 50.0  # sigmoid(alpha) = 1
    memory = torch.randn(1, 6, 4, dtype=torch.float64)
    usage = torch.tensor([[5.0, 4.0, 1.0, 6.0, 7.0, 8.0]], dtype=torch.float64)
    read = torch.tensor([[[0, 0, 0, 0, 1.0, 0]]], dtype=torch.float64)
    state = cell.initial_state(1)._replace(usage=usage, memory=memory, read_weights=read)
    _, after = cell(torch.randn(1, 1, 5, dtype=torch.float64), state)
    # Row 4 is written; row 2, least used, is erased all the same.
    assert (after.memory != memory).any(2)[0].tolist() == [False, False, True, False, True, False]
    assert after.memory[0, 2].abs().max() < 1e-12


def test_heads_write_to_different_rows_or_share_them():
    apart, shared = (make_cell(least_used=kind, seed=3) for kind in ("per_head", "shared"))
    x = torch.randn(1, 1, 5, dtype=torch.float64)
    rows = [cell(x)[1].memory[0] for cell in (apart, shared)]
    assert not torch.allclose(rows[0][0], rows[0][1])
    torch.testing.assert_close(rows[1][0], rows[1][1])  # both heads wrote to both


def test_reading_after_the_write_finds_the_row_just_written():
    torch.manual_seed(0)
    add = torch.randn(1, 1, 1, 4, dtype=torch.float64) * 100
    weights = {}
    for first in (True, False):
        cell = make_cell(num_heads=1, read_first=first)
        _, state = cell(torch.randn(1, 1, 5, dtype=torch.float64), key=add, add=add)
        weights[first] = state.read_weights[0, 0]
    assert weights[False][0] > 0.9  # row 0 is the least used of an unused memory
    assert (weights[True] - 1 / 6).abs().max() < 1e-6  # all rows are still alike


@pytest.mark.parametrize(
    "choices", [{}, {"write": "key", "least_used": "shared", "read_first": False}]
)
def test_gradients_against_finite_differences(choices):
    cell = make_cell(in_dim=2, hidden=3, rows=4, width=2, **choices)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    # Usage far from ties, so that a small step changes no choice of rows.
    usage = torch.tensor([[1.0, 11.0, 21.0, 31.0]], dtype=torch.float64).expand(2, 4)
    parameters = tuple(cell.parameters())

    def run(x, memory, *parameters):
        names = [name for name, _ in cell.named_parameters()]
        state = cell.initial_state(2)._replace(memory=memory, usage=usage)
        y, last = torch.func.functional_call(
            cell, dict(zip(names, parameters, strict=True)), (x, state)
        )
        return y, last.memory

    assert torch.autograd.gradcheck(run, (x, memory, *parameters), fast_mode=True)


def test_no_gradient_through_usage_and_detach():
    cell = make_cell()
    _, state = cell(torch.randn(1, 4, 5, dtype=torch.float64))
    assert not state.usage.requires_grad
    assert state.memory.requires_grad
    cut = state.detach()
    assert isinstance(cut, MANNState)
    assert not any(part.requires_grad for part in cut)


def test_empty_sequence_and_empty_batch():
    check_empty(make_cell())


def test_state_dict_round_trip():
    cell, other = make_cell(seed=0), make_cell(seed=1)
    check_state_dict(cell, other, torch.randn(2, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x must be \[B, T, 5\], got \[2, 3, 4\]"),
        (
            {"x": torch.zeros(2, 3, 5), "key": torch.zeros(2, 3, 8)},
            r"key must be .* \[2, 3, 2, 4\]",
        ),
        ({"x": torch.zeros(2, 3, 5), "add": torch.zeros(2, 2, 2, 4)}, "add must be"),
    ],
)
def test_errors_say_what_was_expected(arguments, message):
    cell = make_cell().float()
    with pytest.raises(ValueError, match=message):
        cell(arguments.pop("x"), **arguments)


def test_more_heads_than_rows_is_an_error():
    with pytest.raises(ValueError, match="rows must be at least num_heads = 4, got 2"):
        MANNCell(5, MANNConfig(rows=2, num_heads=4))


def test_lstm_baseline_has_the_same_interface():
    torch.manual_seed(0)
    cell = LSTMCell(5, hidden=3)
    x = torch.randn(2, 6, 5)
    whole, last = cell(x)
    first, middle = cell(x[:, :2])
    second, end = cell(x[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last.c, end.c)
    assert not any(part.requires_grad for part in last.detach())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_memory_stays_fp32(half):
    cell, x = make_cell(6).float(), torch.randn(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = cell(x)
    assert {part.dtype for part in (y, *state)} == {torch.float32}
    y, state = cell.to(half)(x.to(half))
    assert {part.dtype for part in (y, *state)} == {torch.float32}
    assert bool(y.isfinite().all())


def test_ragged_sequences_end_where_they_end():
    torch.manual_seed(0)
    cell = MANNCell(6, MANNConfig(hidden=10, rows=8, width=6, num_heads=2))
    x, lengths = torch.randn(3, 5, 6), torch.tensor([5, 2, 0])
    _, start = cell(torch.randn(3, 3, 6))
    y, state = cell(x, start, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        part = MANNState(*(field[b : b + 1] for field in start))
        alone, end = cell(x[b : b + 1, :length], part)
        torch.testing.assert_close(y[b : b + 1, :length], alone)
        assert not y[b, length:].any()
        for ours, theirs in zip(state, end, strict=True):
            torch.testing.assert_close(ours[b : b + 1], theirs)
