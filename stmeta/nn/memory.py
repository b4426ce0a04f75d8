"""Memories as layers: put behind any encoder, they read a sequence of features step by step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stmeta.memory import CellConfig, MANNConfig, NTMConfig


class MemoryLayer(nn.Module):
    """Any memory as a layer: its output at a step, through a Linear where `out_dim` is given.

    Args:
        dim: width D of the features.
        out_dim: width D' of the result; None = no Linear, D' = `cell.out_dim`.
        config: of the memory, which it builds.

    Raises:
        ValueError: `out_dim` is below 1, or the sizes do not fit (from the memory).
    """

    def __init__(self, dim: int, out_dim: int | None = None, *, config: CellConfig) -> None:
        super().__init__()
        self.cell = config.build(dim)
        if out_dim is not None and out_dim < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: out_dim must be at least 1, or None, got {out_dim}")
        width: int = self.cell.out_dim
        self.out_dim = width if out_dim is None else out_dim
        self.proj = nn.Identity() if out_dim is None else nn.Linear(width, out_dim)

    def forward(
        self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Read a sequence, as `torch.nn.LSTM` with `batch_first` does.

        Args:
            x: [B, T, D], fp32 or fp64; under autocast any.
            state: where to start, such as the end of the last part of a sequence; None = empty.
            lengths: int64 [B], steps of each sequence; None = T. What comes out behind the end of
                a sequence means nothing.

        Returns:
            [B, T, D'], and the state behind the last step of each sequence.

        Raises:
            ValueError: a shape does not fit (from the memory).
        """
        y, end = self.cell(x, state, lengths=lengths)
        return self.proj(y), end


class NTMMemory(MemoryLayer):
    """A neural Turing machine as a layer (Graves et al. 2014, section 3).

    With controller output h, head weights w, erase e and write vector a, one step reads r = w M
    (eq. 2) and writes M <- M (1 - w e^T) + w a^T (eq. 3-4); heads look by content (eq. 5-6), keep
    or leave their last place (eq. 7), shift (eq. 8) and sharpen (eq. 9). The layer's output at a
    step is (h, r), through a Linear where `out_dim` is given.

    Args:
        dim: width D of the features.
        out_dim: width D' of the result; None = no Linear, D' = hidden + read_heads * width.
        config: sizes of controller and memory, and what the paper leaves open.

    Raises:
        ValueError: `out_dim` is below 1, or a size is (from `stmeta.memory.NTMCell`).
    """

    def __init__(
        self, dim: int, out_dim: int | None = None, *, config: NTMConfig | None = None
    ) -> None:
        super().__init__(dim, out_dim, config=config or NTMConfig())


class MANN(MemoryLayer):
    """A memory-augmented network with least-recently-used access (Santoro et al. 2016, section 3).

    With controller output h, key k and gate alpha, one step writes at weights w_w = sigmoid(alpha)
    w_r(t-1) + (1 - sigmoid(alpha)) w_lu(t-1) (eq. 7-8), reads r = w_r M with w_r = softmax(cos(k,
    M)) (eq. 2-4) and tracks what was used: w_u <- gamma w_u + w_r + w_w (eq. 5-6). The layer's
    output at a step is (h, r), through a Linear where `out_dim` is given.

    Args:
        dim: width D of the features.
        out_dim: width D' of the result; None = no Linear, D' = hidden + num_heads * width.
        config: sizes of controller and memory, and what the paper leaves open.

    Raises:
        ValueError: `out_dim` is below 1, or the sizes do not fit (from `stmeta.memory.MANNCell`).
    """

    def __init__(
        self, dim: int, out_dim: int | None = None, *, config: MANNConfig | None = None
    ) -> None:
        super().__init__(dim, out_dim, config=config or MANNConfig())
