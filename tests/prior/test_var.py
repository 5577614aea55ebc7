"""VAR beyond law 11: what scales are fed, guidance over the scales, variants, sizes, a run, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prior
import tokenizers_vq as tvq
from prior.conditions import ClassConfig, Context
from prior.decoding import decode
from prior.model import Prior, PriorConfig
from prior.networks.var import VarConfig, VarSampler, VarState
from prior.recipe import load_recipe
from prior.retarget import begin
from prior.sampling import Sampler
from prior.sequences import LayoutConfig
from prior.training import train
from tests.laws.priors import multiscale, rows
from tests.prior.conftest import SMALL
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.quantizers.vector import VectorQuantizerConfig

LAYOUT = CodeLayout(((1, 2), (2, 2), (3, 4)), 1, (7, 7, 7))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def build(layout: CodeLayout = LAYOUT, book: Any = None, **fields: Any) -> Prior:
    network = VarConfig(**{"layers": 2, "dim": 32, "heads": 2, **fields})
    config = PriorConfig(
        network=network,
        condition=ClassConfig(num_classes=3),
        layout=LayoutConfig.of(layout),
        book=book or multiscale(layout),
    )
    made = Prior(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def test_a_scale_is_fed_the_coarser_ones_vectors_shrunk_to_its_grid() -> None:
    model = build()
    tokens = rows(LAYOUT, 3)
    codes, quantizer = LAYOUT.unflatten(tokens), model.network.book
    wanted = [
        F.interpolate(quantizer.partial(codes, upto), size=grid, mode="area").flatten(2).transpose(1, 2)
        for upto, grid in ((1, (2, 2)), (2, (3, 4)))
    ]
    torch.testing.assert_close(model.network.inputs(tokens), torch.cat(wanted, dim=1), atol=1e-6, rtol=1e-6)
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


@pytest.mark.parametrize("fields", [{"attn_l2_norm": False}, {"shared_aln": True}, {"mlp_ratio": 2.5}])
@torch.no_grad()
def test_variants_draw_as_they_predict(fields: dict[str, Any]) -> None:
    model, plain = build(**fields), build()
    assert {name: value.shape for name, value in model.state_dict().items()} != {
        name: value.shape for name, value in plain.state_dict().items()
    }
    tokens = rows(LAYOUT, 2)
    state = VarState(model.network, model.context(1, 2))
    found = [state.logits, *(state.step(tokens[:, places]) for places in model.network.places[:-1])]
    torch.testing.assert_close(torch.cat(found, dim=1), model.logits(tokens, 1), atol=2e-5, rtol=1e-5)
    greedy = model.sample(2, 1, temperature=0)
    assert torch.equal(model.logits(greedy, 1).argmax(dim=-1), greedy)


@torch.no_grad()
def test_attention_without_norms_has_the_references_scale() -> None:
    made = build(attn_l2_norm=False).network.stack[0].attention
    x = torch.randn(2, 5, 32)
    bias = torch.cat((made.q_bias, torch.zeros(32), made.v_bias))
    q, k, v = (part.view(2, 5, 2, 16).transpose(1, 2) for part in F.linear(x, made.qkv.weight, bias).chunk(3, dim=-1))
    weights = (0.25 / 4 * q @ k.mT).softmax(dim=-1)  # 0.25 / sqrt(head_dim)
    wanted = made.out((weights @ v).transpose(1, 2).reshape(2, 5, 32))
    torch.testing.assert_close(made(x, None, None), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_guidance_rises_over_the_scales() -> None:
    model = build()
    network, off = model.network, model.sample(4, 1, temperature=0)
    greedy = model.sample(4, 1, temperature=0, guidance=5)
    assert torch.equal(greedy[:, network.places[0]], off[:, network.places[0]])
    told, untold = model.logits(greedy, 1), model.logits(greedy)
    for scale, places in enumerate(network.places):  # (1 + t) c - t u, t = 4 s / (S - 1)
        t = 4 * scale / 2
        wanted = (1 + t) * told[:, places] - t * untold[:, places]
        assert torch.equal(wanted.argmax(dim=-1), greedy[:, places])
    constant = model.sample(4, 1, temperature=0, guidance=5, guidance_schedule="constant")
    assert not torch.equal(constant, greedy)


@pytest.mark.parametrize("change", [lambda plain: plain, lambda plain: plain.replace(seed=2)])
def test_what_a_plain_sampler_leaves_unset_is_as_var_has_it(change: Callable[[Sampler], Sampler]) -> None:
    model = build()
    plain = change(Sampler(guidance=5, seed=2))
    assert torch.equal(model.sample(4, 1, plain), model.sample(4, 1, VarSampler(guidance=5, seed=2)))
    said = change(Sampler(guidance=5, seed=2, guidance_schedule="constant"))
    assert torch.equal(model.sample(4, 1, said), model.sample(4, 1, seed=2, guidance=5, guidance_schedule="constant"))
    assert not torch.equal(model.sample(4, 1, said), model.sample(4, 1, plain))


@torch.no_grad()
def test_several_vectors_are_pooled_without_their_padding() -> None:
    network, tokens = build().network, rows(LAYOUT, 2)
    vectors = torch.randn(2, 3, 32)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    mean = torch.stack((vectors[0, 1:].mean(dim=0), vectors[1].mean(dim=0)))
    told = network(tokens, Context(vectors, mask))
    torch.testing.assert_close(told, network(tokens, Context(mean[:, None])), atol=1e-5, rtol=1e-5)


def test_stochastic_depth_leaves_out_branches_in_training_alone() -> None:
    model = build(drop_path=0.9)
    tokens = rows(LAYOUT, 4)
    assert model(tokens, 1) == model(tokens, 1)
    model.train()
    assert len({model(tokens, 1).item() for _ in range(4)}) > 1
    assert [block.drop_path for block in model.network.stack] == [0.0, 0.9]


@pytest.mark.parametrize(
    ("preset", "count"),
    [("var-d16", 310_283_520), ("var-d20", 600_917_136), ("var-d24", 1_033_399_360), ("var-d30", 2_010_020_356)],
)
def test_published_sizes(preset: str, count: int) -> None:
    """310M, 600M, 1.0B and 2.0B in the reference's README; counted by hand from its modules."""
    with torch.device("meta"):
        tokenizer = tvq.create("var-f16")
        condition = {"kind": "class", "num_classes": 1000}
        layout, book = tokenizer.code_layout(), tokenizer.config.quantizer
        made = prior.create(preset, layout, condition, book=book)
    depth, codes, places, scales = made.config.network.layers, 4096, 680, 10
    width = 64 * depth
    attention = 3 * width**2 + 2 * width + depth + width**2 + width
    block = attention + 8 * width**2 + 5 * width + 6 * width**2 + 6 * width
    ends = 33 * width + 1001 * width + (1 + places + scales) * width + 2 * width**2 + 2 * width + (width + 1) * codes
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == depth * block + ends == count


def test_what_it_cannot_take_is_refused() -> None:
    levels = CodeLayout(((2, 2),), 2, (7, 7))
    for layout, book, says in (
        (CodeLayout(((2, 2),), 1, (7,)), multiscale(LAYOUT), "these stand on 2x2, 1 at a position"),
        (levels, multiscale(LAYOUT), "these stand on 2x2, 2 at a position"),
        (LAYOUT, VectorQuantizerConfig(num_codes=7, dim=4), "predicts the codes of a multi-scale quantizer"),
        (CodeLayout(LAYOUT.grids, 1, (7, 7, 6)), multiscale(LAYOUT), "the quantizer's codes have layout"),
        (CodeLayout(((1, 1), (3, 4)), 1, (7, 7)), multiscale(LAYOUT), "the quantizer's codes have layout"),
        (CodeLayout(((1, 1), (2, 2)), 1, (7, 7)), multiscale(LAYOUT), "the scales end in a grid of 3x4"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            build(layout, book)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="heads: 3 heads do not divide the width 32"):
        VarConfig(layers=1, dim=32, heads=3)


def test_another_grid_keeps_all_but_the_places_and_another_tokenizer_all_but_what_knows_codes() -> None:
    old, wide = build(), CodeLayout(((1, 2), (2, 3), (4, 6)), 1, (7, 7, 7))
    for book, whose in ((old.config.book, "a"), (old.config.book, "b"), (multiscale(LAYOUT), "c")):
        new = build(wide, book.replace(scales=wide.grids))
        if whose != "c":  # the same vectors, whatever the fingerprint: that of other scales is another
            new.network.book.load_state_dict(old.network.book.state_dict())
        before = {name: value.clone() for name, value in new.state_dict().items()}
        for model, name in ((old, "a"), (new, whose)):
            model.config = model.config.replace(fingerprint=name * 64)
        said: list[str] = []
        begin(new, old, "P", said.append)
        state, fresh = (
            new.state_dict(),
            ("network.book.", *(("network.enter.", "network.head.") if whose == "c" else ())),
        )
        assert "positions stretched from 1x2 + 2x2 + 3x4 to 1x2 + 2x3 + 4x6" in said[0]
        assert ("new embedding and head" in said[0]) == (whose == "c")
        assert state["network.positions"].shape == (2 + 6 + 24, 32)
        for key, value in old.state_dict().items():
            if key.startswith(fresh):
                assert torch.equal(state[key], before[key])
            elif key != "network.positions":
                assert torch.equal(state[key], value)
    assert torch.allclose(state["network.positions"][:2], old.state_dict()["network.positions"][:2], atol=1e-6)


@pytest.fixture(scope="module")
def scales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-scale tokenizer of 16 x 16 images."""
    torch.manual_seed(0)
    narrow = ["encoder.width=8", "decoder.width=8", "encoder.latent_width=8", "decoder.latent_width=8", "image_size=16"]
    book = "quantizer={kind: multiscale, scales: [1, 2], book: {kind: vector, num_codes: 16, dim: 4}}"
    folder = tmp_path_factory.mktemp("tokenizers") / "scales"
    tvq.create("var-tiny-64", [*narrow, book]).save_pretrained(folder)
    return folder


def test_a_run_is_saved_with_the_quantizer_and_needs_no_tokenizer(
    scales: Path, write_codes: Callable[..., Path], tmp_path: Path
) -> None:
    here = tmp_path / "tokenizer"
    shutil.copytree(scales, here)
    codes = write_codes(tmp_path / "codes", of=here)
    small = [override for override in SMALL if not override.startswith("model.")]
    sizes = ["model.network.layers=1", "model.network.dim=16", "model.network.heads=2"]
    recipe = load_recipe("var-tiny", codes, [*small, *sizes, "steps=4", "image_every=4"])
    assert train(recipe, tmp_path / "run", device="cpu").bits_per_token > 0
    tokenizer = tvq.load(here)
    shutil.rmtree(here)
    model = prior.load(tmp_path / "run")
    kept = model.network.book.state_dict()
    assert kept.keys() == tokenizer.quantizer.state_dict().keys()
    assert all(torch.equal(value, kept[name]) for name, value in tokenizer.quantizer.state_dict().items())
    tokens: Tensor = model.sample(2, ["cat", "fox"], guidance=3)
    assert decode(tokenizer, model, tokens).shape == (2, 3, 16, 16)


def test_a_prior_is_created_for_a_tokenizer(scales: Path, tokenizer: Path) -> None:
    opened = tvq.load(scales)
    made = prior.create("var-tiny", opened, {"kind": "class", "num_classes": 3})
    assert made.config.fingerprint == opened.fingerprint and made.layout == opened.code_layout()
    kept = made.network.book.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in opened.quantizer.state_dict().items())
    plain = prior.create("gpt-tiny", tvq.load(tokenizer))
    assert plain.network.book is None and plain.config.fingerprint == tvq.load(tokenizer).fingerprint
    with pytest.raises(ValueError, match="book: a var network needs the tokenizer's quantizer: give its config"):
        prior.create("var-tiny", opened.code_layout())
    with pytest.raises(ValueError, match="these stand on 4x4, 1 at a position"):
        prior.create("rq-tiny", tvq.load(tokenizer))


def test_a_tokenizer_of_several_quantizers_is_refused(write_codes: Callable[..., Path], tmp_path: Path) -> None:
    narrow = ["encoder.width=8", "decoder.width=8", "image_size=32"]
    tvq.create("vqvae2-tiny-64", narrow).save_pretrained(tmp_path / "tokenizer")
    codes = write_codes(tmp_path / "codes", 10, of=tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="this tokenizer, which is hierarchical, has one for each grid"):
        train(load_recipe("var-tiny", codes, ["steps=1"]), tmp_path / "run", device="cpu")
