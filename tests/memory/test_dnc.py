from __future__ import annotations

import pytest
import torch

from stmeta.memory.dnc import DNCCell, DNCConfig, DNCState
from tests.memory._reference import (
    check_empty,
    check_equations,
    check_every_gradient,
    check_fused,
    check_link,
    check_two_runs,
    slow_allocation,
    slow_links,
    slow_run,
)

CHOICES = [
    {},
    {"read_heads": 1},
    {"write_heads": 2, "read_heads": 3},
    {"write_heads": 3, "links": False},
    {"links": False},
    {"feed_reads": False, "clear_freed": True},
    {"usage_sees_writes": False},
    {"eps": 1e-3, "write_heads": 2, "clear_freed": True},
]
PARTS = DNCState._fields


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On tensors this small, threads wait for each other: ten times as long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def name_of(choices):
    return ",".join(map(str, choices)) or "default"


def make_cell(in_dim=5, *, seed=0, **choices):
    torch.manual_seed(seed)
    sizes = {"hidden": 7, "rows": 6, "width": 4, "read_heads": 2}
    cell = DNCCell(in_dim, DNCConfig(**(sizes | choices))).double()
    with torch.no_grad():  # gates and modes that differ from head to head
        cell.interface.weight *= 3
    return cell


def slow_content(memory, key, raw, eps):
    beta = 1 + torch.log1p(torch.exp(raw))
    likeness = []
    for row in memory:
        # A root has no gradient at zero; the length of an empty row is zero and stays so.
        size = row.square().sum().sqrt() if row.abs().max() > 0 else row.abs().sum()
        likeness.append((key * row).sum() / ((key.square().sum().sqrt() + eps) * (size + eps)))
    weights = torch.exp(beta * torch.stack(likeness))
    return weights / weights.sum()


def slow_control(cell, x, state):
    config, hidden = cell.config, cell.config.hidden
    seen = torch.cat([x, state["h"], *([state["reads"]] if config.feed_reads else [])])
    gates = torch.cat([cell.input.weight, cell.recurrent.weight], 1) @ seen + cell.input.bias
    i, f, g, o = gates.view(4, hidden)
    c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def slow_write(config, memory, usage, heads):
    width, weights = config.width, []
    for head in heads:
        allocate, write = torch.sigmoid(head[3 * width + 1]), torch.sigmoid(head[3 * width + 2])
        content = slow_content(memory, head[:width], head[3 * width], config.eps)
        free = slow_allocation(usage)
        weights.append(write * (allocate * free + (1 - allocate) * content))
        usage = usage + (1 - usage) * write * allocate * free
    for weight, head in zip(weights, heads, strict=True):
        memory = memory * (1 - torch.outer(weight, torch.sigmoid(head[width : 2 * width])))
    for weight, head in zip(weights, heads, strict=True):
        memory = memory + torch.outer(weight, head[2 * width : 3 * width])
    return memory, torch.stack(weights)


def slow_step(cell, x, state):
    """One sample, one step, from the equations of the paper."""
    config, width = cell.config, cell.config.width
    h, c = slow_control(cell, x, state)
    out = cell.interface.weight @ h + cell.interface.bias
    readers = out[: config.read_heads * cell.per_read].view(config.read_heads, -1)
    writers = out[readers.numel() :].view(config.write_heads, -1)

    kept = torch.ones_like(state["usage"])
    for head, last in zip(readers, state["read_weights"], strict=True):
        kept = kept * (1 - torch.sigmoid(head[width + 1]) * last)
    usage = state["usage"]
    for last in state["write_weights"]:
        last = last if config.usage_sees_writes else last.detach()
        usage = usage + last - usage * last
    usage = usage * kept
    before = state["memory"] * kept[:, None] if config.clear_freed else state["memory"]
    memory, w_write = slow_write(config, before, usage, writers)

    link, precedence = state["link"], state["precedence"]
    if config.links:
        pairs = zip(link, precedence, w_write, strict=True)
        new = [slow_links(*head) for head in pairs]
        link, precedence = (torch.stack(parts) for parts in zip(*new, strict=True))
    w_read = []
    for head, last in zip(readers, state["read_weights"], strict=True):
        looks = [slow_content(memory, head[:width], head[width], config.eps)]
        if config.links:
            looks = [one.T @ last for one in link] + looks + [one @ last for one in link]
        mix = torch.exp(head[width + 2 :]) if config.links else looks[0].new_ones(1)
        w_read.append(sum(p * w for p, w in zip(mix / mix.sum(), looks, strict=True)))
    reads = torch.cat([w @ memory for w in w_read])
    new = (memory, usage, link, precedence, w_write, torch.stack(w_read), reads, h, c)
    return dict(zip(PARTS, new, strict=True))


@pytest.mark.parametrize("choices", CHOICES, ids=name_of)
def test_matches_the_equations_and_their_gradients(choices):
    cell = make_cell(**choices)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    check_equations(cell, x, slow_step)


def test_values_match_the_equations_once_rows_run_out():
    cell = make_cell(write_heads=2)
    x = torch.randn(1, 20, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            cell(x)[0], slow_run(cell, x, slow_step)[0], rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("choices", CHOICES, ids=name_of)
def test_fused_fp32_is_near_float64_in_values_and_gradients(choices):
    cell = make_cell(**choices)
    check_fused(cell, torch.randn(3, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize("choices", CHOICES, ids=name_of)
def test_one_run_equals_two_with_the_state_passed_on(choices):
    cell = make_cell(**choices)
    check_two_runs(cell, torch.randn(3, 8, 5, dtype=torch.float64), 4)


def test_samples_of_a_batch_do_not_touch_each_other():
    cell = make_cell()
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(cell(x)[0][2:3], cell(x[2:3])[0])


@pytest.mark.parametrize("links", [True, False])
def test_shapes_of_one_sample_and_one_step(links):
    cell = make_cell(write_heads=3, links=links)
    y, state = cell(torch.randn(1, 1, 5, dtype=torch.float64))
    assert y.shape == (1, 1, cell.out_dim) == (1, 1, 7 + 2 * 4)
    n = 6 if links else 0
    assert state.link.shape == (1, 3, n, n)
    assert state.precedence.shape == (1, 3, n)
    assert state.write_weights.shape == (1, 3, 6)
    assert state.read_weights.shape == (1, 2, 6)


@pytest.mark.parametrize("choices", CHOICES, ids=name_of)
def test_weights_stay_in_the_simplex(choices):
    state = make_cell(**choices)(torch.randn(4, 30, 5, dtype=torch.float64) * 3)[1]
    above = 1 + 1e-12
    assert 0 <= state.usage.min() and state.usage.max() <= above
    for part in (state.write_weights, state.read_weights, state.precedence):
        assert part.numel() == 0 or (part.min() >= 0 and part.sum(-1).max() <= above)
    if state.link.numel():
        check_link(state.link, above)


def test_detach_and_inputs_left_alone():
    cell = make_cell()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    state = cell(x)[1]
    assert state.memory.requires_grad
    cut = state.detach()
    assert isinstance(cut, DNCState)
    assert not any(part.requires_grad for part in cut)
    kept = [part.clone() for part in (x, *cut)]
    cell(x, cut)
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, *cut), strict=True))


def test_every_parameter_gets_a_gradient():
    for choices in CHOICES:
        check_every_gradient(make_cell(**choices), torch.randn(2, 4, 5, dtype=torch.float64))


def test_usage_can_be_blind_to_the_gradient_of_writes():
    x = torch.randn(1, 2, 5, dtype=torch.float64)
    for sees in (True, False):
        cell = make_cell(usage_sees_writes=sees, read_heads=1)
        state = cell.initial_state(1)
        weights = torch.full((1, 1, 6), 0.1, dtype=torch.float64, requires_grad=True)
        usage = cell(x[:, :1], state._replace(write_weights=weights))[1].usage
        assert usage.min() > 0
        assert usage.requires_grad  # through the free gates in either case
        grad = torch.autograd.grad(usage.sum(), weights, allow_unused=True)[0]
        assert (grad is not None) == sees


def writing_cell(rows=6, **choices):
    """A cell that always allocates a row, writes it whole and frees nothing."""
    cell = make_cell(rows=rows, read_heads=1, **choices)
    with torch.no_grad():
        cell.interface.weight.zero_()
        bias = cell.interface.bias
        bias[cell.config.width + 1] = -50.0  # free gate
        heads = bias[cell.per_read :].view(-1, cell.per_write)
        heads[:, -2:] = 50.0  # allocation gate, write gate
    return cell


def test_rows_are_allocated_one_after_the_other_and_linked():
    cell = writing_cell()
    _, state = cell(torch.randn(1, 4, 5, dtype=torch.float64))
    torch.testing.assert_close(state.usage[0], torch.tensor([1.0, 1, 1, 0, 0, 0]).double())
    torch.testing.assert_close(state.write_weights[0, 0], torch.eye(6).double()[3])
    follows = torch.zeros(6, 6, dtype=torch.float64)
    follows[1, 0] = follows[2, 1] = follows[3, 2] = 1.0
    torch.testing.assert_close(state.link[0, 0], follows)
    # Forward from row 1 is row 2; backward is row 0.
    at = torch.eye(6).double()[1]
    assert (state.link[0, 0] @ at).argmax() == 2
    assert (state.link[0, 0].T @ at).argmax() == 0


def test_write_heads_allocate_rows_of_their_own():
    cell = writing_cell(write_heads=2)
    _, state = cell(torch.randn(1, 2, 5, dtype=torch.float64))
    assert state.write_weights[0].argmax(1).tolist() == [2, 3]


@pytest.mark.parametrize("clear", [True, False])
def test_a_free_gate_frees_the_row_just_read(clear):
    cell = writing_cell(clear_freed=clear)
    with torch.no_grad():
        cell.interface.bias[cell.config.width + 1] = 50.0  # free gate
        cell.interface.bias[-1] = -50.0  # write gate
    memory = torch.randn(1, 6, 4, dtype=torch.float64)
    read = torch.eye(6).double()[2].view(1, 1, 6)
    state = cell.initial_state(1)._replace(memory=memory, read_weights=read)
    state = state._replace(usage=torch.ones(1, 6, dtype=torch.float64))
    after = cell(torch.randn(1, 1, 5, dtype=torch.float64), state)[1]
    torch.testing.assert_close(after.usage[0], 1 - read[0, 0])
    changed = (after.memory - memory).abs().amax(2)[0] > 1e-6
    assert changed.tolist() == [row == 2 and clear for row in range(6)]


def test_empty_sequence_and_empty_batch():
    check_empty(make_cell())


@pytest.mark.parametrize("name", ["hidden", "rows", "width", "read_heads", "write_heads"])
def test_errors_of_the_config(name):
    with pytest.raises(ValueError, match=f"DNCCell: {name} must be at least 1, got 0"):
        make_cell(**{name: 0})


def test_errors_of_shapes():
    with pytest.raises(ValueError, match=r"DNCCell: x must be \[B, T, 5\], got \[2, 4\]"):
        make_cell()(torch.zeros(2, 4))
    cell = make_cell()
    with pytest.raises(ValueError, match=r"state must be of the batch of x, 3, got 1; use"):
        cell(torch.zeros(3, 2, 5, dtype=torch.float64), cell.initial_state(1))
