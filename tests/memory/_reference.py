"""What the tests of several memories share: the equations of the papers, one sample at a time."""

from __future__ import annotations

import copy

import torch

import stmeta


def slow_allocation(usage):
    """Eq. 1 for one sample. Python's sort is stable, so the lower row comes first on a tie."""
    order = sorted(range(len(usage)), key=usage.tolist().__getitem__)
    weights, product = [None] * len(usage), torch.ones((), dtype=usage.dtype)
    for row in order:
        weights[row] = (1 - usage[row]) * product
        product = product * usage[row]
    return torch.stack(weights)


def slow_links(link, precedence, w):
    n = len(w)
    rows = [
        torch.stack(
            [
                (1 - w[i] - w[j]) * link[i, j] + w[i] * precedence[j] if i != j else 0 * w[i]
                for j in range(n)
            ]
        )
        for i in range(n)
    ]
    return torch.stack(rows), (1 - w.sum()) * precedence + w


def slow_run(cell, x, step):
    """`cell(x)`, sample by sample and step by step: y and the last state."""
    ys, states = [], []
    for b in range(x.shape[0]):
        first = cell.initial_state(1)
        state = {name: part[0] for name, part in first._asdict().items()}
        for t in range(x.shape[1]):
            state = step(cell, x[b, t], state)
            ys.append(torch.cat([state["h"], state["reads"]]))
        states.append(state)
    names = first._fields
    last = type(first)(*(torch.stack([state[name] for state in states]) for name in names))
    return torch.stack(ys).view(*x.shape[:2], -1), last


def gradients(cell, x, run):
    x = x.clone().requires_grad_()
    y, state = run(cell, x)
    generator = torch.Generator().manual_seed(7)
    loss = 0
    for part in (y, *state):
        weight = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        loss = loss + (part * weight.to(part.dtype)).sum()
    return torch.autograd.grad(loss, (x, *cell.parameters()))


def check_equations(cell, x, step):
    """A cell in float64 against `step`, the equations of its paper: values and gradients."""
    y, state = cell(x)
    slow_y, slow_state = slow_run(cell, x, step)
    torch.testing.assert_close(y, slow_y, rtol=1e-9, atol=1e-11)
    for ours, slow in zip(state, slow_state, strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-11)
    fast = gradients(cell, x, type(cell).__call__)
    slow = gradients(cell, x, lambda cell, x: slow_run(cell, x, step))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def check_fused(cell, x):
    """A cell in fp32 against itself in float64: values, and gradients beside those of eager."""
    single = copy.deepcopy(cell).float()
    run = type(cell).__call__
    torch.testing.assert_close(single(x.float())[0].double(), cell(x)[0], rtol=1e-4, atol=1e-4)
    exact = gradients(cell, x, run)
    fused = gradients(single, x.float(), run)
    with stmeta.backend("eager"):
        eager = gradients(single, x.float(), run)
    for e, f, g in zip(exact, fused, eager, strict=True):
        # 2e-5 of the largest entry is what fp32 itself loses over six steps of sharp heads.
        bound = 4 * (g - e).abs().max() + 2e-5 * e.abs().max() + 1e-6
        assert (f - e).abs().max() <= bound


def check_two_runs(cell, x, steps):
    """One run equals one of the first steps and one of the others, from the state in between."""
    whole, last = cell(x)
    first, middle = cell(x[:, :steps])
    second, end = cell(x[:, steps:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    for a, b in zip(last, end, strict=True):
        torch.testing.assert_close(a, b)


def check_every_gradient(cell, x):
    cell(x)[0].square().sum().backward()
    for name, parameter in cell.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def check_empty(cell):
    """No steps, and no samples, for a memory of 6 rows of 4 numbers that takes 5."""
    y, state = cell(torch.zeros(3, 0, 5, dtype=torch.float64))
    assert y.shape == (3, 0, cell.out_dim)
    assert state.memory.shape == (3, 6, 4)
    assert cell(torch.zeros(0, 2, 5, dtype=torch.float64))[0].shape == (0, 2, cell.out_dim)


def check_state_dict(cell, other, x):
    """Two cells that differ are the same once one has loaded the other's parameters."""
    assert not torch.equal(cell(x)[0], other(x)[0])
    other.load_state_dict(cell.state_dict())
    assert torch.equal(cell(x)[0], other(x)[0])


def check_link(link, above):
    assert link.min() >= 0
    assert link.diagonal(dim1=-2, dim2=-1).abs().max() == 0
    assert link.sum(-1).max() <= above
    assert link.sum(-2).max() <= above
