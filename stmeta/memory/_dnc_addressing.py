"""The two parts of the DNC's addressing that cost the most: allocation and temporal links."""

from __future__ import annotations

import torch
from torch import Tensor

from stmeta.ops._args import check_shapes


def allocation(usage: Tensor) -> Tensor:
    """Weights over free rows (Graves et al. 2016, Methods, eq. 1 of "Dynamic memory allocation").

    a[phi_j] = (1 - u[phi_j]) * prod_{i < j} u[phi_i], where phi sorts the rows by usage, least
    used first. Of rows used alike, the lower index comes first.

    Exact at u = 0 and u = 1, in values and in gradients, so no epsilon is added to the usage: a
    sum of logarithms would be infinite at 0, and a quotient of products 0 / 0. Gradients pass
    through the values of the usage, not through its order.

    Args:
        usage: [B, N] in [0, 1]; fp32 or fp64.

    Returns:
        [B, N], dtype of `usage`; rows sum to 1 - prod(u), at most 1.

    Raises:
        ValueError: usage is not [B, N].
    """
    check_shapes("allocation", usage=(usage, "B N"))
    ordered, order = torch.sort(usage, dim=1, stable=True)
    # prod_{i < j}: the product up to j, moved on by one. Its backward looks for zeros and so
    # waits for the device; that is eager PyTorch's price for exact gradients at u = 0.
    before = torch.cat([torch.ones_like(ordered[:, :1]), ordered[:, :-1].cumprod(1)], dim=1)
    return torch.zeros_like(usage).scatter(1, order, (1 - ordered) * before)


def temporal_link(link: Tensor, precedence: Tensor, write_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Remember which row was written after which (Graves et al. 2016, "Temporal memory linkage").

    Per write head, with write weights w and the precedence p of the step before:

        L[i, j] = (1 - w[i] - w[j]) * L[i, j] + w[i] * p[j],  L[i, i] = 0
        p       = (1 - sum(w)) * p + w

    L[i, j] near 1 says that row i was written right after row j. Where rows and columns of L and
    the sums of p and w are at most 1, they stay so.

    Args:
        link: [B, W, N, N] with a diagonal of zeros; fp32 or fp64.
        precedence: [B, W, N].
        write_weight: [B, W, N], sums at most 1.

    Returns:
        The new link [B, W, N, N] and precedence [B, W, N].

    Raises:
        ValueError: shapes or devices disagree.
    """
    sizes = check_shapes(
        "temporal_link",
        link=(link, "B W N K"),
        precedence=(precedence, "B W N"),
        write_weight=(write_weight, "B W N"),
    )
    if sizes["K"] != sizes["N"]:
        raise ValueError(
            f"temporal_link: link must be [B, W, N, N], got {list(link.shape)}; "
            "its last two axes are both the rows of the memory"
        )
    after, behind = write_weight[..., :, None], write_weight[..., None, :]
    linked = torch.addcmul(after * precedence[..., None, :], 1 - after - behind, link)
    same = torch.eye(sizes["N"], dtype=torch.bool, device=link.device)
    total = write_weight.sum(-1, keepdim=True)
    return linked.masked_fill(same, 0), torch.addcmul(write_weight, 1 - total, precedence)
