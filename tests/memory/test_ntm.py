from __future__ import annotations

import pytest
import torch

from stmeta.memory.ntm import NTMCell, NTMConfig, NTMState
from stmeta.ops.memory.content_addressing import EPS
from tests.memory._reference import (
    check_empty,
    check_equations,
    check_every_gradient,
    check_fused,
    check_state_dict,
    check_two_runs,
    gradients,
)

CHOICES = [
    {},
    {"controller": "feedforward"},
    {"controller": "feedforward", "start_controller": "learned", "tanh_key": True},
    {"read_first": False, "read_heads": 3, "write_heads": 2, "taps": 5},
    {"feed_reads": False, "tanh_add": True, "taps": 1},
    {"start_memory": "learned", "start_weights": "zero"},
    {"start_weights": "first_row", "start_controller": "learned", "initial": 0.1},
    {"start_memory": "learned", "write_heads": 3, "read_heads": 1, "read_first": False},
]
PARTS = NTMState._fields


def name_of(choices):
    return ",".join(map(str, choices.values())) or "default"


def make_cell(in_dim=5, *, seed=0, **choices):
    torch.manual_seed(seed)
    sizes = {"hidden": 7, "rows": 6, "width": 4, "read_heads": 2, "write_heads": 1}
    cell = NTMCell(in_dim, NTMConfig(**(sizes | choices))).double()
    with torch.no_grad():  # gates and shifts that differ from head to head
        cell.interface.weight *= 3
        if cell.start_controller is not None:
            cell.start_controller.normal_()
    return cell


def slow_address(memory, last, head, taps, *, tanh_key):
    """Weights of one head over the rows of one sample: eq. 5-9, row by row."""
    rows, width = memory.shape
    key = torch.tanh(head[:width]) if tanh_key else head[:width]
    beta = torch.log1p(torch.exp(head[width]))
    gamma = 1 + torch.log1p(torch.exp(head[width + 1]))
    gate = 1 / (1 + torch.exp(-head[width + 2]))
    shift = torch.exp(head[width + 3 :]) / torch.exp(head[width + 3 :]).sum()
    likeness = [
        (key * row).sum() / ((key.square().sum().sqrt() + EPS) * (row.square().sum().sqrt() + EPS))
        for row in memory
    ]
    content = torch.exp(beta * torch.stack(likeness))
    gated = gate * content / content.sum() + (1 - gate) * last
    moved = [
        sum(shift[j] * gated[(i - (j - taps // 2)) % rows] for j in range(taps))
        for i in range(rows)
    ]
    sharp = torch.stack(moved) ** gamma
    return sharp / sharp.sum()


def slow_control(cell, x, state):
    config = cell.config
    seen = [x, state["reads"]] if config.feed_reads else [x]
    weight = cell.recurrent.weight
    if config.controller == "feedforward":
        weight = torch.cat([cell.input.weight, weight], 1)
        return torch.tanh(weight @ torch.cat(seen) + cell.input.bias), state["c"]
    hidden = config.hidden  # recurrent sees h before the reads
    weight = torch.cat([cell.input.weight, weight[:, hidden:], weight[:, :hidden]], 1)
    gates = weight @ torch.cat([*seen, state["h"]]) + cell.input.bias
    i, f, g, o = gates.view(4, hidden)
    c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def slow_step(cell, x, state):
    """One sample, one step, from the equations of the paper."""
    config = cell.config
    reads, writes, width = config.read_heads, config.write_heads, config.width
    h, c = slow_control(cell, x, state)
    out = cell.interface.weight @ h + cell.interface.bias
    heads = out[: (reads + writes) * (width + 3 + config.taps)].view(reads + writes, -1)
    erase, add = out[heads.numel() :].view(2, writes, width)
    erase = torch.sigmoid(erase)
    add = torch.tanh(add) if config.tanh_add else add
    old = state["memory"]
    weights = [
        slow_address(old, last, head, config.taps, tanh_key=config.tanh_key)
        for last, head in zip(state["weights"], heads, strict=True)
    ]
    rows = []
    for n in range(config.rows):
        row = old[n]
        for w in range(writes):
            row = row * (1 - weights[reads + w][n] * erase[w])
        for w in range(writes):
            row = row + weights[reads + w][n] * add[w]
        rows.append(row)
    memory = torch.stack(rows)
    look = old if config.read_first else memory
    read = [sum(weights[r][n] * look[n] for n in range(config.rows)) for r in range(reads)]
    return dict(zip(PARTS, (memory, torch.stack(weights), torch.cat(read), h, c), strict=True))


@pytest.mark.parametrize("choices", CHOICES, ids=name_of)
def test_matches_the_equations_and_their_gradients(choices):
    cell = make_cell(**choices)
    x = torch.randn(2, 5, 5, dtype=torch.float64)
    check_equations(cell, x, slow_step)


@pytest.mark.parametrize("choices", CHOICES, ids=name_of)
def test_fused_fp32_is_near_float64_in_values_and_gradients(choices):
    cell = make_cell(**choices)
    check_fused(cell, torch.randn(3, 6, 5, dtype=torch.float64))


@pytest.mark.parametrize("choices", CHOICES, ids=name_of)
def test_one_run_equals_two_with_the_state_passed_on(choices):
    cell = make_cell(**choices)
    check_two_runs(cell, torch.randn(3, 8, 5, dtype=torch.float64), 4)


@pytest.mark.parametrize("choices", [c for c in CHOICES if "controller" not in c], ids=name_of)
def test_one_call_equals_the_steps(choices):
    cell = make_cell(**choices)
    x = torch.randn(3, 8, 5, dtype=torch.float64)

    def steps(cell, x):
        return cell._steps(cell.input(x), cell.initial_state(len(x)))

    ours, theirs = cell(x), steps(cell, x)
    for a, b in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients(cell, x, NTMCell.__call__), gradients(cell, x, steps), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("controller", "dtype", "calls"),
    [
        ("lstm", torch.float32, 0),
        ("lstm", torch.float64, 0),
        ("lstm", torch.bfloat16, 4),
        ("feedforward", torch.float32, 4),
    ],
)
def test_what_the_scan_does_not_take_goes_step_by_step(controller, dtype, calls, monkeypatch):
    cell = make_cell(controller=controller).to(dtype)
    seen, step = [], cell._step
    monkeypatch.setattr(cell, "_step", lambda *args: (seen.append(args), step(*args))[1])
    y, state = cell(torch.randn(2, 4, 5, dtype=dtype))
    assert len(seen) == calls
    assert y.dtype == state.memory.dtype == dtype and y.isfinite().all()


def test_autocast_keeps_the_memory_in_fp32():
    cell = make_cell().float()
    x = torch.randn(2, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = cell(x)
    assert y.dtype == state.memory.dtype == torch.float32
    torch.testing.assert_close(y, cell(x)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ragged_sequences_end_where_they_end(controller, dtype):
    cell = make_cell(controller=controller).to(dtype)
    x, lengths = torch.randn(3, 5, 5, dtype=dtype), torch.tensor([5, 2, 0])
    _, start = cell(torch.randn(3, 3, 5, dtype=dtype))
    y, state = cell(x, start, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        part = NTMState(*(field[b : b + 1] for field in start))
        alone, end = cell(x[b : b + 1, :length], part)
        torch.testing.assert_close(y[b : b + 1, :length], alone)
        assert not y[b, length:].any()
        for ours, theirs in zip(state, end, strict=True):
            torch.testing.assert_close(ours[b : b + 1], theirs)
    with pytest.raises(ValueError, match=r"NTMCell: lengths must be in 0 \.\.\. T = 5, got 0 .* 6"):
        cell(x, start, lengths=torch.tensor([6, 2, 0]))


def test_samples_of_a_batch_do_not_touch_each_other():
    cell = make_cell()
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(cell(x)[0][2:3], cell(x[2:3])[0])


def test_shapes_of_one_sample_and_one_step():
    cell = make_cell(read_heads=2, write_heads=3)
    y, state = cell(torch.randn(1, 1, 5, dtype=torch.float64))
    assert y.shape == (1, 1, cell.out_dim) == (1, 1, 7 + 2 * 4)
    assert [tuple(part.shape) for part in state] == [(1, 6, 4), (1, 5, 6), (1, 8), (1, 7), (1, 7)]
    torch.testing.assert_close(state.weights.sum(2), torch.ones(1, 5, dtype=torch.float64))


def test_inputs_and_states_are_left_alone():
    cell = make_cell(start_weights="first_row")
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    state = cell(x)[1].detach()
    kept = [part.clone() for part in (x, *state)]
    cell(x, state)
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, *state), strict=True))


def test_detach_cuts_the_graph_and_keeps_the_values():
    cell = make_cell()
    _, state = cell(torch.randn(1, 4, 5, dtype=torch.float64))
    assert state.memory.requires_grad
    cut = state.detach()
    assert isinstance(cut, NTMState)
    assert not any(part.requires_grad for part in cut)
    assert all(torch.equal(a, b) for a, b in zip(cut, state, strict=True))


def test_a_head_steps_row_by_row_from_the_first():
    cell = make_cell(read_heads=1, write_heads=1, start_weights="first_row")
    with torch.no_grad():
        heads = cell.interface.bias[: 2 * cell.per_head].view(2, -1)
        cell.interface.weight.zero_()
        heads[:, cell.config.width + 2] = -50.0  # gate 0: by location only
        heads[:, -3:] = torch.tensor([-50.0, -50.0, 50.0])  # one row on
    _, state = cell(torch.randn(1, 4, 5, dtype=torch.float64))
    assert state.weights.argmax(2).tolist() == [[4, 4]]
    torch.testing.assert_close(state.weights.amax(2), torch.ones(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("start", ["learned", "first_row"])
def test_a_constant_memory_does_not_stay_constant(start):
    cell = make_cell(start_weights=start)
    memory = cell(torch.randn(1, 6, 5, dtype=torch.float64))[1].memory[0]
    assert torch.linalg.matrix_rank(memory - memory.mean(0)) >= 3
    assert (memory[0] - memory[3]).abs().max() > 1e-3


def test_every_parameter_gets_a_gradient():
    for choices in CHOICES:
        check_every_gradient(make_cell(**choices), torch.randn(2, 4, 5, dtype=torch.float64))


def test_empty_sequence_and_empty_batch():
    check_empty(make_cell())


def test_state_dict_round_trip():
    learned = {"start_memory": "learned", "start_controller": "learned"}
    cell, other = make_cell(seed=0, **learned), make_cell(seed=1, **learned)
    check_state_dict(cell, other, torch.randn(2, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"write_heads": 0}, "write_heads must be at least 1, got 0"),
        ({"taps": 4}, r"taps must be odd and at most rows = 6, got 4"),
        ({"taps": 7}, r"taps must be odd and at most rows = 6, got 7"),
        ({"controller": "gru"}, r"controller must be one of .*'feedforward'\), got 'gru'"),
        ({"start_weights": "uniform"}, "start_weights must be one of .*, got 'uniform'"),
        ({"controller": "feedforward", "feed_reads": False}, "must have feed_reads=True"),
        ({"start_weights": "zero"}, "start_weights must be 'learned' or 'first_row'"),
    ],
)
def test_errors_of_the_config_say_what_was_expected(choices, message):
    with pytest.raises(ValueError, match=f"NTMCell: .*{message}"):
        make_cell(**choices)


def test_errors_of_shapes_say_what_was_expected():
    cell = make_cell()
    with pytest.raises(ValueError, match=r"NTMCell: x must be \[B, T, 5\], got \[2, 3, 4\]"):
        cell(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"state must be of the batch of x, 3, got 1; use"):
        cell(torch.zeros(3, 2, 5, dtype=torch.float64), cell.initial_state(1))
    with pytest.raises(ValueError, match=r"ntm_scan: weights must be \[B, R\+W, N\]"):
        other = make_cell(rows=5).initial_state(2)
        cell(torch.zeros(2, 3, 5).double(), cell.initial_state(2)._replace(weights=other.weights))
