"""Books of several levels: any quantizer as a book, configs of before there were books, scales of what is left over."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tokenizers_vq as tvq
from tests.laws.quantizers import BOOKS
from tokenizers_vq.config import ConfigError
from tokenizers_vq.quantizers import (
    MultiscaleQuantizerConfig,
    ProductQuantizerConfig,
    Quantizer,
    ResidualQuantizer,
    ResidualQuantizerConfig,
    VectorQuantizerConfig,
)
from tokenizers_vq.training.advice import against_collapse
from tokenizers_vq.training.recipe import load_recipe

OLDER: list[tuple[type, dict[str, Any], Any]] = [
    (
        ResidualQuantizerConfig,
        {"levels": 3, "num_codes": 24, "dim": 6, "codebook": "ema", "shared": True},
        VectorQuantizerConfig(num_codes=24, dim=6, codebook="ema"),
    ),
    (
        ResidualQuantizerConfig,
        {"levels": 2, "num_codes": [24, 12], "dim": 6, "dropout": 0.5},
        (VectorQuantizerConfig(num_codes=24, dim=6), VectorQuantizerConfig(num_codes=12, dim=6)),
    ),
    (
        ResidualQuantizerConfig,
        {"distance": "cosine"},
        VectorQuantizerConfig(distance="cosine", gradient_through_norm=False),
    ),
    (ResidualQuantizerConfig, {}, VectorQuantizerConfig()),
    (ProductQuantizerConfig, {"groups": 4, "num_codes": 16}, VectorQuantizerConfig(num_codes=16, dim=64)),
    (
        ProductQuantizerConfig,
        {"num_codes": [16, 8], "dim": 6, "distance": "cosine", "beta": 1.0},
        tuple(VectorQuantizerConfig(num_codes=size, dim=3, distance="cosine", beta=1.0) for size in (16, 8)),
    ),
    (
        MultiscaleQuantizerConfig,
        {"scales": [1, 2], "beta": 0.5, "revive_after": 8},
        VectorQuantizerConfig(num_codes=4096, dim=32, beta=0.5, revive_after=8),
    ),
]


@pytest.mark.parametrize(("kind", "fields", "book"), OLDER, ids=lambda value: getattr(value, "__name__", None))
def test_configs_of_before_are_read_and_fingerprinted_as_they_were(
    kind: Any, fields: dict[str, Any], book: Any
) -> None:
    config = kind(**fields)
    assert config.book == book
    assert kind(**config.to_dict()) == kind(**config.to_dict(defaults=False)) == config
    assert config.described() == {"kind": config.kind, **fields}


def test_a_fingerprint_sees_what_those_of_before_could_not_say() -> None:
    plain = ResidualQuantizerConfig(book={"kind": "vector", "num_codes": 8, "dim": 4})
    assert plain.described() == {"kind": "residual", "num_codes": 8, "dim": 4}
    for book in (
        {**BOOKS["fsq"]},
        {"kind": "vector", "estimator": "rotation"},
        {"kind": "vector", "distance": "cosine"},
    ):
        config = ResidualQuantizerConfig(book=book)
        assert config.described() == {"kind": "residual", "book": config.book.to_dict(defaults=False)}
    mixed = ResidualQuantizerConfig(levels=2, book=(BOOKS["vector"], {**BOOKS["vector"], "beta": 1.0}))
    assert len(mixed.described()["book"]) == 2
    scales = MultiscaleQuantizerConfig(book={"kind": "vector", "distance": "cosine"})
    assert "book" in scales.described()


def test_a_field_beside_the_book_is_the_book_s() -> None:
    small = ["encoder.width=16", "encoder.latent_width=4", "decoder.width=16", "decoder.latent_width=4"]
    config = tvq.create("rqvae-tiny-64", ["quantizer.num_codes=32", "quantizer.dim=4", *small]).config
    assert (config.quantizer.book.num_codes, config.quantizer.book.dim, config.quantizer.book.codebook) == (
        32,
        4,
        "ema",
    )
    older = ResidualQuantizerConfig(num_codes=8, dim=6, book={"num_codes": 4, "revive_after": 3})
    assert (older.book.num_codes, older.book.dim, older.book.revive_after) == (4, 6, 3)
    several = ResidualQuantizerConfig(levels=2, num_codes=(8, 4), dim=6, book=({"kind": "vector"}, BOOKS["simvq"]))
    assert [(book.kind, book.num_codes, book.dim) for book in several.books] == [("vector", 8, 6), ("simvq", 4, 6)]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ResidualQuantizerConfig, {"book": [BOOKS["vector"]] * 3}, "book: 3 books for 4 levels"),
        (ResidualQuantizerConfig, {"levels": 2, "book": [BOOKS["fsq"], BOOKS["lfq"]]}, r"of one width.*\[3, 4\] wide"),
        (ResidualQuantizerConfig, {"book": {"kind": "gumbel", "dim": 4, "in_dim": 6}}, r"of one width.*\[4, 6\] wide"),
        (MultiscaleQuantizerConfig, {"book": {"kind": "residual"}}, "book.kind: unknown kind 'residual'; choose from"),
        (MultiscaleQuantizerConfig, {"book": [{"num_codes": 3}]}, "book.0: needs a `kind`"),
        (ResidualQuantizerConfig, {"book": 3, "dim": 4}, "book: input should be a valid dictionary"),
        (ResidualQuantizerConfig, {"book": {"kind": "fsq"}, "dim": 4}, "book.dim: no such field"),
        (ResidualQuantizerConfig, {"levels": 10**12}, "levels: input should be less than or equal to 256"),
        (ProductQuantizerConfig, {"groups": 0}, "groups: input should be greater than or equal to 1"),
        (ResidualQuantizerConfig, {"shared": True, "book": [BOOKS["vector"], BOOKS["simvq"]], "levels": 2}, "is one"),
    ],
)
def test_books_that_do_not_fit_are_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        kind(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("book", "left"),
    [
        # Uniform in a box: each level divides the error by its number of levels less one, or two.
        ({"kind": "fsq", "levels": (5, 5, 5)}, 4.0),
        ({"kind": "fsq", "levels": (8, 8)}, 7.0),
        ({"kind": "fsq", "levels": (2, 2, 2)}, 2.0),
        ({"kind": "lfq", "bits": 3}, 2.0),
    ],
    ids=["odd", "even", "two", "lfq"],
)
def test_levels_without_a_codebook_fill_what_is_left_over(book: dict[str, Any], left: float) -> None:
    quantizer = ResidualQuantizer(levels=4, book=book)
    z = (torch.rand(16, quantizer.dim, 16, 16) - 0.5) * (4 if book["kind"] == "lfq" else 8)
    confined = quantizer.levels[0].confine(z)
    codes = quantizer.encode(z)
    errors = [(quantizer.partial(codes, upto) - confined).abs().amax() for upto in range(1, 5)]
    for coarse, fine in itertools.pairwise(errors):
        assert fine <= coarse / left * 1.01 + 1e-6
    used = [len(level.unique()) for level in codes[..., 1:].flatten(0, 2).unbind(-1)]
    sizes = quantizer.layout((1, 1)).sizes[1:]
    assert all(count > 0.78 * size for count, size in zip(used, sizes, strict=True))


class Rotated(torch.nn.Module):
    """A linear autoencoder of four numbers around a quantizer."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.encoder, self.decoder = torch.nn.Linear(4, quantizer.in_dim), torch.nn.Linear(quantizer.dim, 4)

    def loss(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.quantizer(self.encoder(x).movedim(-1, 1))
        error = F.mse_loss(self.decoder(found.features.movedim(1, -1)), x)
        return error, error + 0.1 * sum(found.losses.values(), torch.zeros(()))


@pytest.mark.parametrize("name", ["fsq", "lfq", "bsq", "simvq", "ibq", "gumbel", "rotation"])
def test_residual_quantizers_of_any_book_train(name: str) -> None:
    """More levels tell more apart, from a mean error of 1 at the start."""
    narrow = {"fsq": {"levels": (3, 3, 3, 3)}, "lfq": {"entropy_weight": 0.0}}.get(name, {})
    if "dim" in BOOKS[name]:
        narrow = {"dim": 4}
    errors = []
    for levels in (1, 3):
        torch.manual_seed(3)
        model = Rotated(ResidualQuantizer(levels=levels, book={**BOOKS[name], **narrow}))
        optimizer = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(150 if name == "gumbel" else 60):
            _, loss = model.loss(torch.randn(16, 5, 4))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            errors.append(float(model.eval().loss(torch.randn(512, 5, 4))[0]))
    assert errors[1] < (0.9 if name == "gumbel" else 0.6) * errors[0] < 0.6, errors  # draws learn slowly


def test_books_state_their_facts_for_those_that_hold_them() -> None:
    fsq = ResidualQuantizerConfig(book=BOOKS["fsq"])
    assert "a fsq quantizer has no codebook to freeze" in (fsq.frozen() or "") and fsq.codebook_size is None
    mixed = ProductQuantizerConfig(book=(BOOKS["vector"], {**BOOKS["vector"], "num_codes": 12}))
    assert mixed.frozen() is None and mixed.codebook_size == 12
    recipe = load_recipe("vqvae-tiny-64", ["model.quantizer={kind: residual, dim: 32}"])
    assert against_collapse(recipe)[0].overrides == ("model.quantizer.book.distance=cosine",)
    two = "model.quantizer={kind: product, book: [{kind: vector, num_codes: 2048}, {kind: vector, num_codes: 4096}]}"
    both = against_collapse(load_recipe("vqvae-tiny-64", [two]))
    tried = [advice.overrides for advice in both]
    assert ("model.quantizer.book.0.revive_after=100", "model.quantizer.book.1.revive_after=100") in tried
    assert not any("num_codes" in override for overrides in tried for override in overrides)
    older = "model.quantizer={kind: product, num_codes: 2048, dim: 64}"
    for given in (two, older):  # the advice can be followed
        for advice in against_collapse(load_recipe("vqvae-tiny-64", [given])):
            load_recipe("vqvae-tiny-64", [given, *advice.overrides])
