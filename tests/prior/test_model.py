"""Law 11 (causality, cache, seeds, flatten, guidance), learning, errors, folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import prior
from prior.conditions import ClassConfig, NoneConfig
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig, rotary_angles, rotate
from prior.sampling import Sampler
from prior.sequences import LayoutConfig
from tokenizers_vq.codes import CodeLayout

LAYOUTS = {
    "grid": CodeLayout(((3, 4),), 1, (11,)),
    "row": CodeLayout(((9,),), 1, (7,)),
    "levels": CodeLayout(((2, 3),), 2, (7, 5)),
    "grids": CodeLayout(((1, 1), (2, 2), (3, 4)), 1, (4, 9, 6)),
    "long": CodeLayout(((9, 8),), 1, (13,)),  # more places than the cache allocates at once
}
CONDITIONS = {"none": NoneConfig(), "class": ClassConfig(num_classes=3)}


def build(layout: CodeLayout, condition: NoneConfig | ClassConfig = CONDITIONS["none"], **fields: int) -> Prior:
    """A small prior with weights large enough for its logits to differ."""
    network = GptConfig(**{"layers": 2, "dim": 32, "heads": 2, "multiple": 16, **fields})
    model = Prior(PriorConfig(network=network, condition=condition, layout=LayoutConfig.of(layout))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens_of(layout: CodeLayout, batch: int) -> Tensor:
    """Random possible codes."""
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    return (torch.rand(batch, layout.length) * sizes).long()


def labels_of(condition: str, batch: int) -> Tensor | None:
    """Labels where the condition takes some."""
    return torch.arange(batch) % 3 if condition == "class" else None


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_causality(name: str, condition: str) -> None:
    layout = LAYOUTS[name]
    model, labels = build(layout, CONDITIONS[condition]), labels_of(condition, 2)
    tokens = tokens_of(layout, 2)
    logits = model(tokens, labels)
    for place in (0, layout.length // 2, layout.length - 1):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % torch.tensor(layout.sizes)[layout.streams()[place]]
        changed = model(other, labels)
        assert torch.equal(changed[:, : place + 1], logits[:, : place + 1])
        if place + 1 < layout.length:
            assert not torch.equal(changed[:, place + 1], logits[:, place + 1])


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_cached_equals_uncached(name: str, condition: str) -> None:
    layout = LAYOUTS[name]
    model = build(layout, CONDITIONS[condition])
    tokens, labels = tokens_of(layout, 3), labels_of(condition, 3)
    wanted = model.network(tokens[:, :-1], model.condition(labels, 3)).detach()
    for start in (0, 1, layout.length // 2):
        with torch.no_grad():
            cache = model.network.cache(3, 1)
            first = model.network(tokens[:, :start], model.condition(labels, 3), cache)
            decoder = model.network.decoder(cache, 1)
            steps = [decoder.step(tokens[:, place]) for place in range(start, layout.length - 1)]
        cached = torch.cat((first, torch.stack(steps, dim=1)), dim=1)
        torch.testing.assert_close(cached, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cache holds"):
        decoder.step(tokens[:, 0])


def test_cached_equals_uncached_in_bfloat16() -> None:
    layout = LAYOUTS["long"]
    model = build(layout).bfloat16()
    tokens = tokens_of(layout, 2)
    with torch.no_grad():
        wanted = model.network(tokens[:, :-1], model.condition(None, 2))
        cache = model.network.cache(2, 1)
        logits = [model.network(tokens[:, :0], model.condition(None, 2), cache)[:, 0]]
        decoder = model.network.decoder(cache, 1)
        logits += [decoder.step(tokens[:, place]) for place in range(layout.length - 1)]
    cached = torch.stack(logits, dim=1)
    assert cached.dtype == wanted.dtype == torch.bfloat16
    assert (cached - wanted).float().norm() < 0.03 * wanted.float().norm()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_sampling_follows_the_seed(condition: str) -> None:
    model, labels = build(LAYOUTS["grids"], CONDITIONS[condition]), labels_of(condition, 4)
    codes = model.sample(4, labels, Sampler(seed=5))
    assert torch.equal(codes, model.sample(4, labels, Sampler(seed=5)))
    assert not torch.equal(codes, model.sample(4, labels, Sampler(seed=6)))
    one = None if labels is None else labels[2:3]
    assert torch.equal(codes[2:3], model.sample(1, one, Sampler(seed=5), first=2))
    assert len({tuple(row) for row in codes.tolist()}) == 4


def test_guidance_one_is_off_and_guidance_is_the_formula() -> None:
    layout = LAYOUTS["grid"]
    model, labels = build(layout, CONDITIONS["class"]), torch.tensor([0, 2])
    off = model.sample(2, labels, Sampler(seed=1))
    assert torch.equal(off, model.sample(2, labels, Sampler(seed=1, guidance=1.0)))
    assert torch.equal(off, model.sample(2, labels, Sampler(seed=1, guidance=1.0000001)))
    guided = model.sample(2, labels, Sampler(temperature=0, guidance=3.0))
    null, told = model(guided, None), model(guided, labels)
    assert torch.equal(guided, (null + 3 * (told - null)).argmax(dim=-1))
    assert not torch.equal(guided, model.sample(2, labels, Sampler(temperature=0)))


def test_greedy_and_distribution() -> None:
    layout = CodeLayout(((2,),), 1, (3,))
    model = build(layout)
    greedy = model.sample(1, None, Sampler(temperature=0))
    assert torch.equal(greedy, model(greedy).argmax(dim=-1))
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    wanted = model.log_likelihood(pairs).exp()
    torch.testing.assert_close(wanted.sum(), torch.tensor(1.0))
    codes = model.sample(20000)
    counts = torch.bincount(codes[:, 0] * 3 + codes[:, 1], minlength=9) / 20000
    assert (counts - wanted).abs().max() < 0.015


@pytest.mark.parametrize("name", ["levels", "grids"])
def test_impossible_codes(name: str) -> None:
    layout = LAYOUTS[name]
    model = build(layout)
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    impossible = torch.arange(max(layout.sizes)) >= sizes[:, None]
    assert torch.equal(model(tokens_of(layout, 2)).isinf(), impossible.expand(2, -1, -1))
    codes = model.sample(64, None, Sampler(temperature=5.0))
    assert bool((codes < sizes).all())
    assert torch.equal(layout.flatten(layout.unflatten(codes)), codes)
    assert bool(model.log_likelihood(codes).isfinite().all())


def test_known_codes_are_kept() -> None:
    layout = LAYOUTS["long"]
    model, codes = build(layout), tokens_of(layout, 3)
    prefix = codes.clone()
    prefix[:, 40:] = -1
    drawn = model.sample(3, None, Sampler(seed=2), prefix)
    assert torch.equal(drawn[:, :40], codes[:, :40]) and bool((drawn >= 0).all())
    scattered = torch.where(torch.rand(3, layout.length) < 0.3, codes, -1)
    drawn = model.sample(3, None, Sampler(seed=2), scattered)
    assert torch.equal(drawn[scattered >= 0], codes[scattered >= 0]) and bool((drawn >= 0).all())
    assert torch.equal(model.sample(3, None, Sampler(), codes), codes)
    # What was drawn, given back as known, changes nothing that follows.
    free = model.sample(3, None, Sampler(seed=7))
    again = free.clone()
    again[:, 20:] = -1
    assert torch.equal(model.sample(3, None, Sampler(seed=7), again), free)


def test_overfits_a_pattern_and_draws_it() -> None:
    layout = CodeLayout(((6, 6),), 1, (8,))
    condition = ClassConfig(num_classes=2, dropout=0.1)
    model = Prior(
        PriorConfig(
            network=GptConfig(layers=2, dim=48, heads=4, multiple=16),
            condition=condition,
            layout=LayoutConfig.of(layout),
        )
    )
    rows, columns = layout.positions()[:, 1], layout.positions()[:, 2]
    patterns, labels = torch.stack(((rows + 2 * columns) % 8, (3 * rows * columns) % 8)), torch.tensor([0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    first = -model.log_likelihood(patterns, labels).mean() / layout.length
    assert abs(first.item() - math.log(8)) < 0.3
    for _ in range(250):
        optimizer.zero_grad()
        (-model.log_likelihood(patterns.repeat(4, 1), labels.repeat(4)).mean() / layout.length).backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    assert -model.log_likelihood(patterns, labels).max() / layout.length < 0.003
    drawn = model.sample(2, labels, Sampler(guidance=1.5, top_p=0.95))
    assert torch.equal(drawn, patterns)
    assert model.training is False


def test_rotary_keeps_relative_places() -> None:
    layout = CodeLayout(((5, 5),), 1, (2,))
    angles = rotary_angles(layout.positions(), 8, 10000.0)
    q, k = torch.randn(8).expand(25, 8), torch.randn(8).expand(25, 8)
    scores = rotate(q, angles) @ rotate(k, angles).T
    grid = scores.view(5, 5, 5, 5)
    torch.testing.assert_close(grid[0, 1, 2, 3], grid[1, 0, 3, 2])
    torch.testing.assert_close(rotate(q, torch.zeros(25, 4)), q)
    assert not torch.allclose(grid[0, 1, 2, 3], grid[0, 1, 3, 2])


def test_label_dropout_in_training_only() -> None:
    model = build(LAYOUTS["row"], ClassConfig(num_classes=3, dropout=0.5))
    tokens, labels = tokens_of(LAYOUTS["row"], 1).expand(400, -1), torch.ones(400, dtype=torch.int64)
    assert torch.equal(model(tokens, labels), model(tokens, 1))
    null = model(tokens[:1], None)
    model.train()
    dropped = (model(tokens, labels)[:, 0] - null[:, 0]).abs().amax(dim=-1) < 1e-5
    assert 150 < int(dropped.sum()) < 250


def test_save_and_load_are_bitwise(tmp_path: Path) -> None:
    model = build(LAYOUTS["levels"], CONDITIONS["class"])
    model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for source in (tmp_path, tmp_path / "model"):
        loaded = prior.load(source)
        assert loaded.config == model.config and not loaded.training
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
        )
    tokens = tokens_of(LAYOUTS["levels"], 2)
    assert torch.equal(loaded(tokens, 1), model(tokens, 1))


def test_damaged_folders_say_so_in_one_line(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path
    build(LAYOUTS["row"]).save_pretrained(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(weights)

    def message(kind: type[Exception] = ValueError) -> str:
        with pytest.raises(kind) as caught:
            prior.load(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert "truncated" in message()
    save_file({name: tensor for name, tensor in tensors.items() if name != "network.norm.weight"}, weights)
    assert "missing network.norm.weight" in message()
    save_file({**tensors, "extra": torch.zeros(1)}, weights)
    assert "surplus extra" in message()
    save_file({**tensors, "network.norm.weight": torch.zeros(3)}, weights)
    assert "network.norm.weight is (3,), the config needs (32,)" in message()
    weights.unlink()
    assert "holds no model.safetensors" in message(FileNotFoundError)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "netwrok": 1}))
    assert "network" in message()
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in message()
    (folder / "config.json").unlink()
    assert "config.json" in message(FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="no folder, shipped prior or Hub repository"):
        prior.load("nothing-here")


def test_presets() -> None:
    names = prior.list_models()
    assert names == ["gpt-b", "gpt-l", "gpt-tiny", "gpt-xl"]
    with torch.device("meta"):
        models = {name: prior.create(name, LAYOUTS["grid"], {"kind": "class", "num_classes": 2}) for name in names}
    sizes = {name: sum(p.numel() for p in model.network.blocks.parameters()) for name, model in models.items()}
    assert [round(sizes[name] / 1e6) for name in ("gpt-b", "gpt-l", "gpt-xl")] == [85, 308, 731]
    assert sizes["gpt-tiny"] < 3e6
    with pytest.raises(ValueError, match="did you mean 'gpt-tiny'"):
        prior.create("gpt-tinny", LAYOUTS["grid"])


def test_errors_are_one_line() -> None:
    model = build(LAYOUTS["grid"], CONDITIONS["class"])
    tokens = tokens_of(LAYOUTS["grid"], 2)
    cases = [
        (lambda: model(tokens[:, :-1]), r"tokens must be int64 \(B, 12\)"),
        (lambda: model(tokens.float()), "float32"),
        (lambda: model(tokens + 11), r"outside \[0, 11\)"),
        (lambda: model(tokens, torch.tensor([0, 3])), "class 3 is out of range"),
        (lambda: model(tokens, -1), "class -1 is out of range"),
        (lambda: model(tokens, torch.tensor([0])), r"labels must be int64 \(2,\)"),
        (lambda: model.sample(0), "ask for 1 or more"),
        (lambda: model.sample(2, None, Sampler(guidance=2.0)), "guidance 2.0 needs a class"),
        (lambda: model.sample(2, 0, None, tokens[:, :3]), "tokens must be"),
        (lambda: model.sample(3, 0, None, tokens), "known holds 2 rows, 3"),
        (lambda: build(LAYOUTS["grid"])(tokens, 1), "unconditional"),
        (lambda: LayoutConfig(grids=((2, 2),), levels=1, sizes=(2**18,)), "at most 65536 codes"),
        (lambda: LayoutConfig(grids=((2, 2),), levels=2, sizes=(4,)), "need 2 sizes"),
        (lambda: GptConfig(layers=1, dim=32, heads=16), "multiple of 4"),
        (lambda: prior.list_models("presets"), "did you mean 'preset'"),
    ]
    for call, text in cases:
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
