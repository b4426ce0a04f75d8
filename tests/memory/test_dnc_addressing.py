from __future__ import annotations

import pytest
import torch

from stmeta.ops import allocation, temporal_link
from tests.memory._reference import check_link, slow_allocation, slow_links

USAGES = {
    "random": torch.rand(5, 7, generator=torch.Generator().manual_seed(0)),
    "ties": torch.tensor([[0.5, 0.2, 0.5, 0.2, 0.2], [0.3] * 5]),
    "all free": torch.zeros(2, 4),
    "all used": torch.ones(2, 4),
    "free and used": torch.tensor([[1.0, 0, 0.5, 0, 1, 0.5], [0, 1, 1, 0.2, 1, 1]]),
    "tiny": torch.tensor([[1e-30, 1e-38, 0.5, 1e-30, 1 - 1e-7]]),
    "one row": torch.tensor([[0.25], [0.0], [1.0]]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", USAGES)
def test_allocation_and_its_gradient_against_a_loop(case, dtype):
    usage = USAGES[case].to(dtype).requires_grad_()
    slow_usage = usage.detach().double().requires_grad_()
    fast = allocation(usage)
    slow = torch.stack([slow_allocation(row) for row in slow_usage])
    torch.testing.assert_close(fast.double(), slow, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fast.double().sum(1), 1 - slow_usage.prod(1), rtol=1e-6, atol=1e-7)
    assert fast.sum(1).max() <= 1 + 4 * torch.finfo(dtype).eps
    weight = torch.randn(usage.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (grad,) = torch.autograd.grad((fast * weight).sum(), usage)
    (slow_grad,) = torch.autograd.grad((slow * weight).sum(), slow_usage)
    torch.testing.assert_close(grad.double(), slow_grad, rtol=1e-5, atol=1e-6)


def test_allocation_takes_the_lower_of_equal_rows():
    usage = torch.full((3, 200), 0.5)  # many rows: an unstable sort would mix them up
    usage[1, 150:] = 0.0
    assert allocation(usage).argmax(1).tolist() == [0, 150, 0]


def test_gradients_of_allocation_and_link_against_finite_differences():
    torch.manual_seed(0)
    usage = (torch.randperm(12).double() / 12 + 0.02).view(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(allocation, usage)
    link, precedence, weight = (
        torch.rand(shape, dtype=torch.float64) / 4 for shape in ((2, 2, 4, 4), (2, 2, 4), (2, 2, 4))
    )
    tensors = [tensor.requires_grad_() for tensor in (link, precedence, weight)]
    assert torch.autograd.gradcheck(temporal_link, tensors)


def test_links_against_a_loop_and_their_invariants():
    torch.manual_seed(0)
    batch, heads, n = 2, 3, 5
    link = torch.zeros(batch, heads, n, n, dtype=torch.float64)
    precedence = torch.zeros(batch, heads, n, dtype=torch.float64)
    for step in range(40):
        weight = torch.softmax(6 * torch.randn(batch, heads, n, dtype=torch.float64), -1)
        if step % 4:  # a closed write gate, and half a write
            weight = weight * (step % 4 - 1) / 2
        b, h = step % batch, step % heads
        slow, slow_precedence = slow_links(link[b, h], precedence[b, h], weight[b, h])
        link, precedence = temporal_link(link, precedence, weight)
        torch.testing.assert_close(link[b, h], slow)
        torch.testing.assert_close(precedence[b, h], slow_precedence)
        check_link(link, 1 + 1e-12)
        assert precedence.min() >= 0 and precedence.sum(-1).max() <= 1 + 1e-12
    assert link.sum(-1).max() > 0.5


def test_no_write_changes_no_link():
    link, precedence = torch.rand(1, 2, 4, 4).tril(-1), torch.rand(1, 2, 4)
    after = temporal_link(link, precedence, torch.zeros(1, 2, 4))
    assert torch.equal(after[0], link) and torch.equal(after[1], precedence)


def test_errors_of_allocation_and_link():
    with pytest.raises(ValueError, match=r"allocation: usage must be \[B, N\], got \[2, 3, 4\]"):
        allocation(torch.zeros(2, 3, 4))
    row = torch.zeros(2, 1, 4)
    with pytest.raises(ValueError, match=r"link must be \[B, W, N, N\], got \[2, 1, 4, 5\]"):
        temporal_link(torch.zeros(2, 1, 4, 5), row, row)
    with pytest.raises(ValueError, match="temporal_link: write_weight must be"):
        temporal_link(torch.zeros(2, 1, 4, 4), row, torch.zeros(2, 2, 4))
