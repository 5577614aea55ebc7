"""What law 11 leaves of the GPT's choices: orders, ways in for a condition, noise, what recipes move or save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prior.conditions import ClassConfig, Context, TextConfig
from prior.model import Prior, PriorConfig
from prior.models import load
from prior.networks.blocks import pool
from prior.networks.gpt import Gpt, GptConfig
from prior.recipe import load_recipe
from prior.sequences import LayoutConfig
from prior.training import train
from tests.laws.priors import LAYOUTS, by_name, rows
from tests.prior.conftest import SMALL
from tokenizers_vq.codes import CodeLayout

TINY = GptConfig(layers=2, dim=32, heads=2, multiple=16)
RAR = by_name("rar, grid").network


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def build(layout: CodeLayout = LAYOUTS["grid"], network: GptConfig = TINY, condition: Any = None) -> Prior:
    condition = condition or ClassConfig(num_classes=3)
    model = Prior(PriorConfig(network=network, condition=condition, layout=LayoutConfig.of(layout))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def gpt(model: Prior) -> Gpt:
    assert isinstance(model.network, Gpt)
    return model.network


@pytest.mark.parametrize("layout", ["grid", "scales", "levels"])
def test_in_any_order_a_code_depends_on_those_before_it(layout: str) -> None:
    model = build(LAYOUTS[layout], RAR)
    length = model.layout.length
    tokens, order = rows(model.layout, 1), torch.randperm(length)[None]
    vectors: list[Tensor] = []
    hook = gpt(model).tokens.register_forward_hook(lambda module, given, out: vectors.append(out))
    logits = gpt(model).logits_in(tokens, model.context(1, 1), order)
    hook.remove()
    finite = logits.masked_fill(logits.isinf(), 0)
    found = torch.zeros(length, length)
    for place in range(length):
        target = (finite[0, place] * torch.randn(logits.shape[-1])).sum()
        (gradient,) = torch.autograd.grad(target, vectors, retain_graph=True)
        found[place, : length - 1] = gradient[0].abs().sum(dim=-1)
    assert torch.equal(found > 0, torch.ones(length, length, dtype=torch.bool).tril(-1))
    sizes = torch.tensor(model.layout.sizes)[model.layout.streams()][order[0]]
    assert torch.equal(logits[0].isneginf(), torch.arange(logits.shape[-1]) >= sizes[:, None])


def test_raster_order_is_an_order_like_others() -> None:
    model = build(network=RAR)
    tokens, raster = rows(model.layout, 3), torch.arange(12).expand(3, -1)
    context = model.context([0, 1, 2], 3)
    found = gpt(model).logits_in(tokens, context, raster)
    torch.testing.assert_close(found, model.logits(tokens, [0, 1, 2]), atol=1e-5, rtol=1e-5)
    turned = gpt(model).logits_in(tokens, context, raster.flip(1))
    alone = gpt(model).logits_in(tokens[:1], model.context(0, 1), raster[:1].flip(1))
    torch.testing.assert_close(turned[:1], alone, atol=1e-5, rtol=1e-5)  # each row has its own
    assert (turned.flip(1) - found).abs().max() > 0.1
    with pytest.raises(ValueError, match="raster order alone: it needs order=random"):
        gpt(build()).logits_in(tokens, context, raster)


def test_the_loss_is_that_of_the_orders_it_draws() -> None:
    model = build(network=RAR.replace(residual_dropout=0.0), condition=ClassConfig(num_classes=3, dropout=0.0))
    tokens = rows(model.layout, 6)
    raster = -model.log_likelihood(tokens, 1).mean() / 12
    torch.testing.assert_close(model(tokens, 1), raster)  # in eval mode
    gpt(model.train()).random_order.fill_(0.0)
    torch.testing.assert_close(model(tokens, 1), raster)
    gpt(model).random_order.fill_(1.0)
    losses = torch.stack([model(tokens, 1) for _ in range(3)])
    assert losses.unique().numel() == 3 and not torch.isclose(losses, raster).any()
    torch.manual_seed(5)
    found = model(tokens, 1)
    torch.manual_seed(5)
    torch.rand(6, 1)
    order = torch.rand(6, 12).argsort(dim=1)
    logits = gpt(model).logits_in(tokens, model.context(1, 6), order)
    torch.testing.assert_close(found, F.cross_entropy(logits.flatten(0, 1), tokens.gather(1, order).flatten()))


@pytest.mark.parametrize("entry", [("prefix",), ("cross",), ("adaln",), ("prefix", "cross", "adaln")])
def test_padding_is_nothing_whatever_the_way_in(entry: tuple[str, ...]) -> None:
    model = build(network=RAR.replace(entry=entry, adaln_places="adaln" in entry))
    tokens, short = rows(model.layout, 2), torch.randn(2, 3, 32)
    mask = torch.tensor([[False, True, False, True, True]]).expand(2, -1)
    padded = torch.full((2, 5, 32), 7.0).masked_scatter(mask[..., None], short)
    told, network = Context(padded, mask), gpt(model)
    with torch.no_grad():
        wanted = network.logits(tokens, Context(short))
        if "prefix" not in entry or "adaln" not in entry:  # there a longer prefix has more places
            torch.testing.assert_close(network.logits(tokens, told), wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pool(told), short.mean(dim=1))
        other = network.logits(tokens, Context(padded.masked_fill(~mask[..., None], -3.0), mask))
        torch.testing.assert_close(other, network.logits(tokens, told), atol=1e-5, rtol=1e-5)
        assert (network.logits(tokens, Context(torch.randn_like(short))) - wanted).abs().max() > 1e-3
        for start in (0, 4):
            state = network.start(tokens[:, :start], told)
            found = [state.logits, *(state.step(tokens[:, place]) for place in range(start, 11))]
            steps = torch.stack(found, dim=1)
            torch.testing.assert_close(steps, network.logits(tokens, told)[:, start:], atol=1e-4, rtol=1e-4)


def test_an_open_prefix_sees_all_of_itself_and_codes_do_not_look_ahead() -> None:
    model = build(network=TINY.replace(open_prefix=True), condition=TextConfig(length=8, layers=1, heads=2))
    tokens, prefix = rows(model.layout, 2), torch.randn(2, 4, 32, requires_grad=True)
    stored: list[Tensor] = []
    hook = gpt(model).stack[1].attention_norm.register_forward_hook(lambda module, given, out: stored.append(out))
    logits = gpt(model).logits(tokens, Context(prefix))
    hook.remove()
    (gradient,) = torch.autograd.grad(stored[0][0, 0].square().sum(), prefix, retain_graph=True)
    assert bool((gradient[0].abs().sum(dim=-1) > 0).all())  # the first vector sees the last
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 11
    with torch.no_grad():
        torch.testing.assert_close(gpt(model).logits(changed, Context(prefix))[:, :7], logits[:, :7])
        told = model.context(["a cat", "a much longer text"], 2)
        state = model.network.start(tokens[:, :2], told)
        torch.testing.assert_close(state.logits, model.network.logits(tokens, told)[:, 2], atol=1e-5, rtol=1e-5)


def test_llamagen_s_prefix_has_neither_queries_nor_keys() -> None:
    model = build(network=TINY.replace(positions="llamagen", layers=1))
    stored: list[Tensor] = []

    def store(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        stored.append(keys)
        return keys, values

    gpt(model).stack[0](torch.randn(1, 3, 32), torch.zeros(2, 3, 8), store=store)
    assert bool((stored[0] == 0).all())
    tokens = rows(model.layout, 2)
    clean = build(network=TINY.replace(layers=1))
    clean.load_state_dict(model.state_dict())
    assert (clean.logits(tokens, 1) - model.logits(tokens, 1)).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["rar, grid", "gpt of taming, levels", "gpt told aside, scales"])
def test_cached_equals_uncached_in_bfloat16(case: str) -> None:
    model = by_name(case).spread(classes=3).bfloat16()
    tokens = rows(model.layout, 2)
    with torch.no_grad():
        wanted = model.network(tokens, model.context([0, 1], 2))
        state = model.network.start(tokens[:, :0], model.context([0, 1], 2))
        logits = [state.logits, *(state.step(tokens[:, place]) for place in range(model.layout.length - 1))]
    cached = torch.stack(logits, dim=1)
    assert cached.dtype == wanted.dtype == torch.bfloat16
    assert (cached - wanted).float().norm() < 0.05 * wanted.float().norm()


def test_noise_and_dropouts_are_of_training_alone() -> None:
    tokens = rows(LAYOUTS["grid"], 4)
    for field in ("token_noise", "token_dropout", "residual_dropout", "attention_dropout"):
        model = build(network=TINY.replace(**{field: 0.5}), condition=ClassConfig(num_classes=3, dropout=0.0))
        plain = build(condition=ClassConfig(num_classes=3, dropout=0.0))
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model.logits(tokens, 1), plain.logits(tokens, 1))
        assert not torch.isclose(model.train()(tokens, 1), plain(tokens, 1))
    noised = gpt(build(LAYOUTS["scales"], TINY.replace(token_noise=0.5))).train()
    tokens = rows(LAYOUTS["scales"], 500)
    found = noised._noised(tokens, None)
    assert bool((found < noised.sequence.bounds).all()) and 0.3 < (found != tokens).float().mean() < 0.5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"heads": 3}, "heads: dim / heads must be a multiple of 4, got 32 / 3"),
        ({"heads": 3, "positions": "learned"}, "heads: 3 heads do not divide the width 32"),
        ({"adaln_places": True}, r"adaln_places: needs adaln among the ways in: entry=\[prefix, adaln\]"),
        ({"entry": ("cross",), "open_prefix": True}, "open_prefix: needs prefix among the ways in"),
        ({"entry": ("cross",), "cross_every": 3}, r"cross_every: 3 is more than there are blocks \(2\)"),
        ({"entry": ("prefix", "prefix")}, "entry: .* names a way in twice"),
        ({"entry": ()}, "entry: "),
        ({"entry": ("crosss",)}, "entry"),
        ({"token_noise": 1.0}, "token_noise: input should be less than 1"),
    ],
)
def test_errors_of_the_config(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        GptConfig(**{"layers": 2, "dim": 32, "heads": 2, **fields})
    assert "\n" not in str(error.value)


NETWORK = f"model.network={json.dumps(RAR.to_dict())}"


def test_a_recipe_moves_orders_to_raster(codes: Path, tmp_path: Path) -> None:
    schedule = "anneal={network.random_order: {begin: 1.0, end: 0.0, over: [0, 5]}}"
    train(load_recipe("rar-tiny", codes, [*SMALL, NETWORK, "steps=4", schedule]), tmp_path / "run", device="cpu")
    share = gpt(load(tmp_path / "run")).random_order
    assert float(share) == pytest.approx(0.4)  # of step 3, the last
    with pytest.raises(ValueError, match=r"this prior has no scalar buffer .*did you mean 'network.random_order'"):
        train(load_recipe("rar-tiny", codes, [*SMALL, NETWORK, "anneal={network.order: 1.0}"]), tmp_path / "other")


def test_gradient_checkpointing_changes_nothing_that_is_learnt(codes: Path, tmp_path: Path) -> None:
    found = []
    for name in ("false", "true"):
        overrides = [*SMALL, NETWORK.replace('"residual_dropout": 0.0', '"residual_dropout": 0.3'), "steps=3"]
        recipe = load_recipe("rar-tiny", codes, [*overrides, f"gradient_checkpointing={name}"])
        train(recipe, tmp_path / name, device="cpu")
        found.append(load(tmp_path / name).state_dict())
    assert all(torch.equal(found[0][key], value) for key, value in found[1].items())
