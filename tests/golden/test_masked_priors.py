"""MaskGIT's schedule and Halton's order against recordings of their references."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from prior.networks.masked import MaskedSampler, halton_order, left_masked
from prior.sampling import Sampler, guidance_at
from tests.conftest import SHARED
from tokenizers_vq.codes import CodeLayout

FOLDER = SHARED / "golden" / "maskgit-transformer" / "vit"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="no recordings beside the checkout")


def test_the_schedule_leaves_as_many_masked_as_recorded() -> None:
    recorded = load_file(FOLDER / "io.safetensors")
    names = [name for name in recorded if name.startswith("left_masked")]
    assert names
    for name in names:
        count, steps = (int(part[1:]) for part in name.split("_")[2:])
        unknown, found = torch.tensor([count]), []
        now = unknown
        for step in range(steps):
            now = left_masked(unknown, now, step, MaskedSampler(steps=steps, schedule="arccos"))
            found.append(int(now))
        assert found == recorded[name].tolist(), name


def test_halton_s_order_is_the_recorded_one() -> None:
    recorded = load_file(SHARED / "golden" / "halton-maskgit" / "order" / "io.safetensors")
    orders = {name: value for name, value in recorded.items() if name.startswith("halton_order")}
    assert orders
    for name, order in orders.items():
        size = int(name.split("_")[2].split("x")[0])
        found = halton_order(CodeLayout(((size, size),), 1, (2,)))
        assert torch.equal(torch.stack((found // size, found % size), dim=1), order.long()), name


def test_guidance_rises_as_recorded_of_rar() -> None:
    for folder in sorted((SHARED / "golden" / "rar").iterdir()):
        meta = json.loads((folder / "meta.json").read_text())
        recorded = load_file(folder / "io.safetensors")["guidance_schedule"]
        sampler = Sampler(
            guidance=meta["guidance_scale"], guidance_schedule="cosine", guidance_power=meta["guidance_scale_pow"]
        )
        found = [guidance_at(sampler, step / len(recorded)) for step in range(len(recorded))]
        torch.testing.assert_close(torch.tensor(found), recorded.float(), atol=1e-5, rtol=1e-5)
