"""The references of the fused ops against their definitions: one number at a time, in float64.

patch_shift: test_patch_shift.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stmeta.ops import patch_shift_ref
from tests.ops._harness import exact_arguments, load, make_inputs


def _exact(op: str, case: str) -> dict:
    """Arguments of a case in float64."""
    declared = load(op)
    cases = {case.name: case for case in (*declared.cases, declared.tiny)}
    return exact_arguments(make_inputs(declared, cases[case]).arguments)


def _compare(op: str, arguments: dict, *expected: Tensor | None) -> None:
    outputs = load(op).reference(**arguments)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    for output, wanted in zip(outputs, expected, strict=True):
        if wanted is not None:
            torch.testing.assert_close(output, wanted, check_dtype=output.is_floating_point())


def _content(memory: Tensor, key: Tensor, strength: Tensor, eps: float = 1e-6) -> Tensor:
    weight = torch.zeros(*key.shape[:2], memory.shape[1], dtype=torch.float64)
    for b, h in _places(key.shape[:2]):
        scores = []
        for row in memory[b]:
            norms = (math.hypot(*key[b, h].tolist()) + eps) * (math.hypot(*row.tolist()) + eps)
            scores.append(float(strength[b, h]) * float(key[b, h] @ row) / norms)
        total = sum(math.exp(score) for score in scores)
        weight[b, h] = torch.tensor([math.exp(score) / total for score in scores])
    return weight


def _location(content, previous, gate, shift, sharpen) -> Tensor:
    weight = torch.zeros_like(content)
    rows, taps = content.shape[2], shift.shape[2]
    for b, h in _places(content.shape[:2]):
        g = float(gate[b, h])
        mixed = [
            g * float(content[b, h, n]) + (1 - g) * float(previous[b, h, n]) for n in range(rows)
        ]
        powers = []
        for n in range(rows):
            around = [mixed[(n - (s - taps // 2)) % rows] for s in range(taps)]
            value = sum(float(shift[b, h, s]) * around[s] for s in range(taps))
            powers.append(max(value, 0.0) ** float(sharpen[b, h]))
        weight[b, h] = torch.tensor(powers) / (sum(powers) or 1.0)
    return weight


def _written(memory: Tensor, weight: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    out = memory.clone()
    for b, n, m in _places(memory.shape):
        for w in range(weight.shape[1]):
            out[b, n, m] *= 1 - weight[b, w, n] * erase[b, w, m]
        for w in range(weight.shape[1]):
            out[b, n, m] += weight[b, w, n] * add[b, w, m]
    return out


def _read(memory: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros(*weight.shape[:2], memory.shape[2], dtype=torch.float64)
    for b, h in _places(weight.shape[:2]):
        for n, row in enumerate(memory[b]):
            out[b, h] += weight[b, h, n] * row
    return out


def _places(shape: torch.Size):
    return torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist()


@pytest.mark.parametrize("case", ["odd", "zero_rows", "found"])
def test_content_addressing(case):
    arguments = _exact("content_addressing", case)
    _compare("content_addressing", arguments, _content(**arguments))


@pytest.mark.parametrize("case", ["five_taps", "moved", "negative", "nowhere", "gate_1"])
def test_location_addressing(case):
    arguments = _exact("location_addressing", case)
    _compare("location_addressing", arguments, _location(**arguments))


def test_a_shift_to_the_right_goes_around_the_ring():
    """The last tap stands for +1: what looked at the last row looks at the first."""
    arguments = _exact("location_addressing", "moved")
    assert (load("location_addressing").reference(**arguments)[:, :, 0] == 1).all()


@pytest.mark.parametrize("case", ["odd", "whole"])
def test_erase_add(case):
    arguments = _exact("erase_add", case)
    _compare("erase_add", arguments, _written(**arguments))


def test_memory_read():
    arguments = _exact("memory_read", "odd")
    _compare("memory_read", arguments, _read(**arguments))


@pytest.mark.parametrize("case", ["odd", "overlap", "idle_head"])
def test_ntm_step(case):
    """All heads address the old memory; the first read, the last write."""
    a = _exact("ntm_step", case)
    content = _content(a["memory"], a["key"], a["strength"])
    weight = _location(content, a["previous"], a["gate"], a["shift"], a["sharpen"])
    heads, writes = weight.shape[1], a["erase"].shape[1]
    memory = _written(a["memory"], weight[:, heads - writes :], a["erase"], a["add"])
    source = a["memory"] if a["read_first"] else memory
    _compare("ntm_step", a, memory, weight, _read(source, weight[:, : a["reads"]]))


@pytest.mark.parametrize("case", ["odd", "ties", "free_or_used", "extreme"])
def test_allocation(case):
    """Row after row, the least used first; of rows used alike the lower one."""
    a = _exact("allocation", case)
    out = torch.zeros_like(a["usage"])
    for b, usage in enumerate(a["usage"].tolist()):
        taken = 1.0
        for n in sorted(range(len(usage)), key=lambda n, u=usage: (u[n], n)):
            out[b, n] = (1 - usage[n]) * taken
            taken *= usage[n]
    _compare("allocation", a, out)


@pytest.mark.parametrize("case", ["odd", "idle", "diagonal"])
def test_temporal_link(case):
    a = _exact("temporal_link", case)
    before, write = a["precedence"], a["write_weight"]
    link = torch.zeros_like(a["link"])
    for b, h, i, j in _places(link.shape):
        if i != j:
            w_i, w_j = write[b, h, i], write[b, h, j]
            link[b, h, i, j] = (1 - w_i - w_j) * a["link"][b, h, i, j] + w_i * before[b, h, j]
    precedence = before.clone()
    for b, h, n in _places(before.shape):
        precedence[b, h, n] -= sum(write[b, h].tolist()) * before[b, h, n]
        precedence[b, h, n] += write[b, h, n]
    _compare("temporal_link", a, link, precedence)


@pytest.mark.parametrize("case", ["odd", "shared", "shared_read_last", "ties"])
def test_lrua_step(case):
    a = _exact("lrua_step", case)
    memory, heads = a["memory"].clone(), a["key"].shape[1]
    rows = [
        sorted(range(len(u)), key=lambda n, u=u: (u[n], n))[:heads] for u in a["usage"].tolist()
    ]
    least = torch.zeros_like(a["previous"])
    for b, r, slot in _places(torch.Size([len(rows), heads, heads])):
        memory[b, rows[b][slot]] = 0
        if a.get("shared") or slot == r:
            least[b, r, rows[b][slot]] = 1
    gate = a["gate"][:, :, None]
    write = gate * a["previous"] + (1 - gate) * least
    for b, r, n in _places(write.shape):
        memory[b, n] += write[b, r, n] * a["add"][b, r]
    source = a["memory"] if a.get("read_first", True) else memory
    weight = _content(source, a["key"], a["strength"])
    usage = a.get("decay", 0.99) * a["usage"] + (weight + write).sum(1)
    _compare("lrua_step", a, memory, usage, weight, _read(source, weight), torch.tensor(rows))


@pytest.mark.parametrize("case", ["odd", "tube", "frame", "ties", "all_kept"])
def test_random_masking(case):
    a = _exact("random_masking", case)
    (frames, places), units = a["grid"], a["units"]
    keep, restore, masked, mask = [], [], [], []
    for noise in a["noise"].tolist():
        chosen = sorted(range(len(noise)), key=lambda unit, noise=noise: (noise[unit], unit))
        chosen = chosen[: a["keep"]]
        unit = [
            (t if units[0] > 1 else 0) * units[1] + (s if units[1] > 1 else 0)
            for t in range(frames)
            for s in range(places)
        ]
        mask.append([u not in chosen for u in unit])
        keep.append([n for n, out in enumerate(mask[-1]) if not out])
        masked.append([n for n, out in enumerate(mask[-1]) if out])
        order = keep[-1] + masked[-1]
        restore.append([order.index(n) for n in range(len(order))])
    expected = [torch.tensor(rows) for rows in (keep, restore, masked, mask)]
    _compare("random_masking", a, *(x.long() for x in expected[:3]), expected[3])


@pytest.mark.parametrize("case", ["odd", "no_pos"])
def test_gather_tokens(case):
    a = _exact("gather_tokens", case)
    pos = a.get("pos", torch.zeros(a["x"].shape[1:], dtype=torch.float64))
    rows = [[x[n] + pos[n] for n in ids] for x, ids in zip(a["x"], a["ids_keep"], strict=True)]
    _compare("gather_tokens", a, torch.stack([torch.stack(row) for row in rows]))


@pytest.mark.parametrize("case", ["odd", "no_pos"])
def test_restore_tokens(case):
    a = _exact("restore_tokens", case)
    keep, count = a["latent"].shape[1], a["ids_restore"].shape[1]
    out = torch.zeros(len(a["latent"]), count, a["latent"].shape[2], dtype=torch.float64)
    for b, n in _places(out.shape[:2]):
        place = int(a["ids_restore"][b, n])
        out[b, n] = a["latent"][b, place] if place < keep else a["mask_token"]
        out[b, n] += a["pos"][n] if "pos" in a else 0
    _compare("restore_tokens", a, out)


@pytest.mark.parametrize(
    "case", ["swapped", "float", "plain_pixels", "whole_rows", "nothing_counts"]
)
def test_masked_patch_loss(case):
    a = _exact("masked_patch_loss", case)
    video, (t, p) = a["video"], (a["tubelet"], a["patch"])
    if "mean" in a:
        mean, std = (torch.tensor(a[x]).double()[:, None, None, None] for x in ("mean", "std"))
        video = (video - mean) / std
    total, count = 0.0, 0
    for b, clip in enumerate(video):
        patches = [
            clip[:, i : i + t, j : j + p, k : k + p].permute(1, 2, 3, 0).flatten()
            for i in range(0, clip.shape[1], t)
            for j in range(0, clip.shape[2], p)
            for k in range(0, clip.shape[3], p)
        ]
        wanted = a["ids"][b] if "ids" in a else range(len(patches))
        for row, token in enumerate(wanted):
            if "mask" in a and not a["mask"][b, row]:
                continue
            target = patches[token]
            if a.get("norm_pix", True):
                target = (target - target.mean()) / (target.var(correction=1) + 1e-6).sqrt()
            total += float((a["pred"][b, row] - target).square().sum())
            count += len(target)
    _compare("masked_patch_loss", a, torch.tensor(total / max(count, 1), dtype=torch.float64))


@pytest.mark.parametrize("case", ["all_tokens", "planar", "weight_alone"])
def test_shifted_patch_embed(case):
    """patch_shift, whose definition has a test of its own, then what is written out here."""
    a = _exact("shifted_patch_embed", case)
    names = ("tubelet", "patch", "shifts", "mean", "std", "norm_weight", "norm_bias")
    shared = {name: a[name] for name in names if name in a}
    tokens = patch_shift_ref(a["video"], **shared)
    out = torch.einsum("bnf,df->bnd", tokens, a["weight"])
    out = out + a.get("bias", 0) + a.get("pos", 0)
    if "ids_keep" in a:
        out = torch.stack([row[ids] for row, ids in zip(out, a["ids_keep"], strict=True)])
    _compare("shifted_patch_embed", a, out)
