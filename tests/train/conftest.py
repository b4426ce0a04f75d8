from __future__ import annotations

import pytest
import torch

from stmeta.data.datasets.omniglot import Omniglot
from stmeta.train.tasks import episodes


@pytest.fixture
def omniglot(monkeypatch, tmp_path):
    """Characters of random strokes in the place of Omniglot."""

    def load(folder, *, size, part, rotations=True):
        generator = torch.Generator().manual_seed(len(part))
        images = 255 * (torch.rand(6, 20, size, size, generator=generator) < 0.2)
        return Omniglot(
            images.to(torch.uint8), tuple(f"Made/{part}{i:02d}/rot000" for i in range(6))
        )

    monkeypatch.setattr(episodes, "load_omniglot", load)
    return tmp_path
