"""Pictures hold what they claim to show; tables hold the numbers they were given."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.image import imread
from rich.console import Console

from stmeta.train import plots as report
from stmeta.train.tasks.classify import bootstrap_macro_f1


def test_reconstruction_shows_three_rows(tmp_path):
    clips = [torch.full((3, 4, 16, 16), v, dtype=torch.uint8) for v in (0, 128, 255)]
    report.reconstruction(*clips, tmp_path / "r.png", frames=4)
    grey = (imread(tmp_path / "r.png")[..., :3].mean(-1) * 255).round()
    values, counts = np.unique(grey, return_counts=True)
    share = dict(zip(values.tolist(), (counts / grey.size).tolist(), strict=True))
    assert share[0] > 0.1  # black frames; text is black too, but far less
    assert share[128] > 0.1
    assert not list(tmp_path.glob("*.tmp"))


def test_curves_of_every_kind_of_stage(tmp_path):
    history = [{"step": i, "loss": 1 / i, "top1": 0.5} for i in range(1, 200)]
    episodes = [{"step": 1, "loss": 1.0, "accuracy": 0.2}]
    report.curves(
        {
            "pretrain": {"history": [{"step": 1, "loss": 1.0}], "evals": []},
            "classify": {"history": history, "evals": [{"step": 100, "loss": 0.3, "top1": 0.6}]},
            "fewshot": {"history": episodes, "evals": [{"step": 1, "instance_1": 0.2}]},
        },
        tmp_path / "c.png",
    )
    assert imread(tmp_path / "c.png").shape[1] > 1000


def test_confusion_counts(tmp_path):
    label, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    report.confusion(label, predicted, ["a", "b", "c"], tmp_path / "m.png")
    assert imread(tmp_path / "m.png").std() > 0.05


def test_summary_prints_the_figures():
    record = {
        "steps": 1200,
        "seconds": 75.0,
        "clips_per_second": 312.0,
        "data_wait_share": 0.021,
        "result": "1: 25.0%, 5: 75.0% (chance 20%)",
    }
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(report.summary({"fewshot": record}))
    for text in ("1,200", "1:15", "312", "2.1%", "1: 25.0%", "5: 75.0%", "chance 20%"):
        assert text in captured.get()


def test_bootstrap_interval_holds_the_score():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (176,), generator=generator)
    wrong = torch.rand(176, generator=generator) < 0.2
    predicted = torch.where(wrong, (labels + 1) % 4, labels)
    scores = bootstrap_macro_f1(predicted, labels, 4)
    assert scores["macro_f1_low"] < scores["macro_f1"] < scores["macro_f1_high"]
    assert 0.04 < scores["macro_f1_high"] - scores["macro_f1_low"] < 0.25
    perfect = bootstrap_macro_f1(labels, labels, 4)
    assert perfect == {"macro_f1": 1.0, "macro_f1_low": 1.0, "macro_f1_high": 1.0}


def test_bootstrap_leaves_unlabelled_clips_out():
    labels = torch.tensor([0, 1, -1, -1])
    assert bootstrap_macro_f1(torch.tensor([0, 1, 0, 1]), labels, 2)["macro_f1"] == 1.0


def test_bootstrap_of_one_clip_is_its_score():
    one = torch.tensor([1])
    exact = {"macro_f1": 1.0, "macro_f1_low": 1.0, "macro_f1_high": 1.0}
    assert bootstrap_macro_f1(one, one, 2) == exact
