"""RQ-Transformer beyond law 11: its order, variants, other quantizers and grids, texts, sizes, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import prior
import tokenizers_vq as tvq
from prior.conditions import ClassConfig, Context, TokensConfig
from prior.decoding import decode
from prior.model import Prior, PriorConfig
from prior.networks.rq import RqConfig
from prior.recipe import load_recipe
from prior.retarget import begin
from prior.sequences import LayoutConfig
from prior.training import train
from tests.laws.priors import before, dependence, multiscale, residual, rows, step_by_step
from tests.prior.conftest import SMALL
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.quantizers.product import ProductQuantizerConfig
from tokenizers_vq.quantizers.residual import ResidualQuantizerConfig
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig

LAYOUT = CodeLayout(((2, 3),), 3, (7, 7, 7))
BOOKS = {
    "residual": residual(LAYOUT),
    "shared": ResidualQuantizerConfig(levels=3, shared=True, book=VectorQuantizerConfig(num_codes=7, dim=5)),
    "fsq": ResidualQuantizerConfig(levels=3, book={"kind": "fsq", "levels": [7]}),
    "product": ProductQuantizerConfig(groups=3, book=VectorQuantizerConfig(num_codes=7, dim=2)),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def build(layout: CodeLayout = LAYOUT, book: Any = None, condition: Any = None, **fields: Any) -> Prior:
    network = RqConfig(**{"layers": 2, "depth_layers": 1, "dim": 32, "heads": 2, **fields})
    config = PriorConfig(
        network=network,
        condition=condition or ClassConfig(num_classes=3),
        layout=LayoutConfig.of(layout),
        book=book or residual(layout),
    )
    made = Prior(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("name", BOOKS)
@torch.no_grad()
def test_any_quantizer_of_several_levels_feeds_it(name: str) -> None:
    model = build(book=BOOKS[name])
    tokens = rows(LAYOUT, 2)
    summed = model.network.vectors(tokens).sum(dim=2).transpose(1, 2).unflatten(2, (2, 3))
    torch.testing.assert_close(summed, model.network.book.lookup(LAYOUT.unflatten(tokens)), atol=1e-6, rtol=1e-6)
    assert torch.equal(dependence(model, 1), before(LAYOUT))
    torch.testing.assert_close(step_by_step(model, tokens, 1, 4), model.logits(tokens, 1)[:, 4:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{"shared_head": False}, {"depth_layers": 3}])
@torch.no_grad()
def test_variants_draw_as_they_predict(fields: dict[str, Any]) -> None:
    model = build(**fields)
    greedy = model.sample(3, 1, temperature=0)
    assert torch.equal(model.logits(greedy, 1).argmax(dim=-1), greedy)
    assert not torch.equal(model.logits(greedy, 1), build().logits(greedy, 1))


@torch.no_grad()
def test_rows_of_one_dimension_and_levels_of_several_sizes() -> None:
    layout = CodeLayout(((4,),), 2, (7, 3))
    model = build(layout)
    tokens = rows(layout, 2)
    torch.testing.assert_close(step_by_step(model, tokens, 1, 3), model.logits(tokens, 1)[:, 3:], atol=2e-5, rtol=1e-5)
    assert bool((model.sample(20, 1, temperature=9.0).view(20, 4, 2) < torch.tensor([7, 3])).all())


@torch.no_grad()
def test_padding_of_a_prefix_is_not_seen() -> None:
    network, tokens = build().network, rows(LAYOUT, 2)
    vectors, mask = torch.randn(2, 4, 32), torch.tensor([[False, False, True, True], [True, True, True, True]])
    logits = network(tokens, Context(vectors, mask))
    torch.testing.assert_close(network(tokens[:1], Context(vectors[:1, 2:])), logits[:1], atol=1e-5, rtol=1e-5)
    state = network.start(tokens[:, :4], Context(vectors, mask))
    found = [state.logits, *(state.step(tokens[:, place]) for place in range(4, LAYOUT.length - 1))]
    torch.testing.assert_close(torch.stack(found, dim=1), logits[:, 4:], atol=2e-5, rtol=1e-5)


def test_a_text_as_numbers() -> None:
    model = build(condition=TokensConfig(vocabulary=9, length=4))
    told = torch.tensor([[1, 2, 3, 4], [0, 8, 0, 0]])
    with torch.no_grad():
        assert (
            torch.equal(model.logits(rows(LAYOUT, 2), told[0])[0], model.logits(rows(LAYOUT, 2), told[0])[0]) is False
        )
    assert torch.equal(model.sample(2, told, seed=1), model.sample(2, told.tolist(), seed=1))
    tokens = rows(LAYOUT, 2)
    assert not torch.equal(model.logits(tokens, told[0]), model.logits(tokens, told[1]))
    for value, says in (
        (None, "never learnt to do without the numbers of a text"),
        ("a cat", "told a text as 4 numbers of its own tokenizer, 0 to 8, got str"),
        (told[:, :3], r"got int64 \(2, 3\)"),
        (told.float(), r"got float32 \(2, 4\)"),
        (told + 8, "got numbers from 8 to 16"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            model.logits(tokens, value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="which this prior never learnt"):
        model.sample(2, told, guidance=2)
    with pytest.raises(ValueError, match="this prior cannot be trained on them; use text"):
        TokensConfig(vocabulary=9, length=4).fit({})


def test_another_grid_stretches_the_places_of_positions() -> None:
    old, new = build(), build(CodeLayout(((4, 3),), 3, (7, 7, 7)))
    new.network.book.load_state_dict(old.network.book.state_dict())
    old.config = old.config.replace(fingerprint="a" * 64)
    said: list[str] = []
    begin(new, old, "P", said.append)
    assert said == ["begins with the weights of P: positions stretched from 2x3 x 3 levels to 4x3 x 3 levels"]
    table = old.network.positions.detach().view(1, 2, 3, 32).permute(0, 3, 1, 2)
    wanted = F.interpolate(table, (4, 3), mode="bicubic")[0].permute(1, 2, 0).reshape(12, 32)
    torch.testing.assert_close(new.network.positions.detach(), wanted)
    kept = [key for key in old.state_dict() if key != "network.positions"]
    assert all(torch.equal(new.state_dict()[key], old.state_dict()[key]) for key in kept)


@pytest.mark.parametrize(
    ("preset", "count"),
    [("rq-480m", 480_921_088), ("rq-821m", 820_899_328), ("rq-1.4b", 1_387_529_728), ("rq-3.8b", 3_822_488_064)],
)
def test_published_sizes(preset: str, count: int) -> None:
    """480M, 821M, 1.4B and 3.8B in the reference's README; counted by hand from its modules."""
    with torch.device("meta"):
        tokenizer = tvq.create("rqvae-f32")
        condition = {"kind": "class", "num_classes": 1000}
        layout, book = tokenizer.code_layout(), tokenizer.config.quantizer
        made = prior.create(preset, layout, condition, book=book)
    network = made.config.network
    width, blocks, codes = network.dim, network.layers + network.depth_layers, 16384
    block = 12 * width**2 + 13 * width
    # classes (and the null class, in place of their position there), two ways in, places, levels, the head
    ends = 1001 * width + 2 * 257 * width + (64 + 4) * width + 2 * width + (width + 1) * codes
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == blocks * block + ends == count


def test_what_it_cannot_take_is_refused() -> None:
    scales = CodeLayout(((1, 1), (2, 2)), 1, (7, 7))
    for layout, book, says in (
        (CodeLayout(((2, 3),), 1, (7,)), residual(LAYOUT), "these stand on 2x3, 1 at a position"),
        (scales, multiscale(scales), r"these stand on 1x1 \+ 2x2, 1 at a position"),
        (CodeLayout(((2, 3),), 2, (7, 7)), residual(LAYOUT), "the quantizer's codes have layout"),
        (CodeLayout(((2, 3),), 3, (7, 7, 6)), residual(LAYOUT), "the quantizer's codes have layout"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            build(layout, book)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="heads: 3 heads do not divide the width 32"):
        RqConfig(layers=1, depth_layers=1, dim=32, heads=3)


def test_a_run_leaves_the_quantizer_as_it_was(write_codes: Callable[..., Path], tmp_path: Path) -> None:
    narrow = ["encoder.width=8", "decoder.width=8", "encoder.latent_width=8", "decoder.latent_width=8", "image_size=16"]
    quantizer = ["quantizer.levels=2", "quantizer.book.num_codes=16", "quantizer.book.dim=4"]
    tvq.create("rqvae-tiny-64", [*narrow, *quantizer]).save_pretrained(tmp_path / "tokenizer")
    codes = write_codes(tmp_path / "codes", of=tmp_path / "tokenizer")
    small = [override for override in SMALL if not override.startswith("model.")]
    sizes = ["model.network.layers=1", "model.network.dim=16", "model.network.heads=2"]
    train(load_recipe("rq-tiny", codes, [*small, *sizes, "steps=4"]), tmp_path / "run", device="cpu")
    tokenizer, model = tvq.load(tmp_path / "tokenizer"), prior.load(tmp_path / "run")
    kept = model.network.book.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in tokenizer.quantizer.state_dict().items())
    assert decode(tokenizer, model, model.sample(2, ["cat", "fox"], guidance=3)).shape == (2, 3, 16, 16)
