"""A caption as condition: how it is read, drawn and told, and data without captions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.laws.adversaries import INNER, make_adversary, make_record
from tokenizers_vq.batch import Batch
from tokenizers_vq.discriminators import PairConfig, TextConfig, UNetConfig
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import MatchingAwareConfig
from tokenizers_vq.networks.ngrams import NgramBag, byte_rows

CONFIG = TextConfig(discriminator=INNER, length=16, buckets=64, width=8)


def test_texts_are_read_as_bytes_and_cut() -> None:
    rows = byte_rows(["né", "", "abcdef"], 4)
    assert rows.tolist() == [[110, 195, 169, -1], [-1] * 4, [97, 98, 99, 100]]


def test_a_bag_is_the_sum_over_all_pieces() -> None:
    bag = NgramBag(5, longest=3, buckets=100_000)
    with torch.no_grad():
        whole, *pieces = bag(byte_rows(["abca", "a", "b", "c", "ab", "bc", "ca", "abc", "bca"], 8))
        # A piece alone also holds its own parts, whose sum goes over the root of their number.
        a, b, c = pieces[:3]
        ab, bc, ca = (p * 3**0.5 - x - y for p, x, y in zip(pieces[3:6], (a, b, c), (b, c, a), strict=True))
        abc = pieces[6] * 6**0.5 - (a + b + c + ab + bc)
        bca = pieces[7] * 6**0.5 - (b + c + a + bc + ca)
        total = 2 * a + b + c + ab + bc + ca + abc + bca
        torch.testing.assert_close(whole, total / 9**0.5, rtol=1e-4, atol=1e-5)
        assert not bag(byte_rows([""], 8)).any()
        padded = bag(byte_rows(["abca"], 64))[0]
        torch.testing.assert_close(padded, whole)
        other = bag(byte_rows(["acba"], 8))[0]
        assert not torch.allclose(other, whole), "the order counts"


def test_text_by_hand_on_logits_of_any_shape() -> None:
    discriminator = CONFIG.replace(discriminator=UNetConfig(width=4)).build(3, (32, 32)).eval()
    images, rows = torch.rand(2, 3, 32, 32), byte_rows(["a red circle", "grün"], 16)
    with torch.no_grad():
        plain, told = discriminator.inner(images), discriminator(images, rows)
        vectors = discriminator.bag(rows) @ discriminator.mix.weight.T
        product = torch.einsum("bd,bdhw->b", vectors, plain.features[-1]) / 16
    for before, after in zip(plain.logits, told.logits, strict=True):
        torch.testing.assert_close(after - before, product.view(2, *[1] * (before.ndim - 1)).expand_as(before))


def test_one_of_several_captions_is_drawn_by_key_and_step() -> None:
    discriminator = PairConfig(discriminator=CONFIG).build(3, (32, 32))
    batch = make_record(discriminator).batch._replace(captions=[("one", "two", "  ", "three")] * 8)

    def read(step: int, rows: slice = slice(None)) -> Any:
        part = Batch(batch.images[rows], batch.keys[rows], None, batch.captions[rows])  # type: ignore[index]
        record = Record(part, part.images, step=step)
        record.tokenizer = make_record(discriminator).tokenizer
        real, fake = (discriminator.inputs(record, x)[-1] for x in (record.images, record.reconstructions))
        assert torch.equal(real, fake)
        return real

    first = read(0)
    assert torch.equal(read(0, slice(2, 5)), first[2:5])
    seen = {bytes(b for b in row if b >= 0).decode() for step in range(4) for row in read(step).tolist()}
    assert seen == {"one", "two", "three"}


@pytest.mark.parametrize(
    ("captions", "problem"),
    [
        (None, "the data have none: give data with captions (`data.caption_column`), or take it out"),
        ([("a",), (), ("", " ")], "2 of 3 images have none: give each one, or take it out"),
    ],
)
def test_captions_that_are_missing_are_refused(captions: Any, problem: str) -> None:
    discriminator = PairConfig(discriminator=CONFIG).build(3, (32, 32))
    images = torch.zeros(3, 3, 32, 32)
    discriminator.check(Batch(images, captions=[("a",), ("b", ""), ("c",)]))
    with pytest.raises(ValueError) as error:
        discriminator.check(Batch(images, captions=captions))
    assert str(error.value).startswith("adversary.discriminator.discriminator: text needs a caption for each image")
    assert str(error.value).endswith(problem) and "\n" not in str(error.value)
    record = make_record(discriminator)
    record.batch = record.batch._replace(captions=None if captions is None else [()] * 8)
    with pytest.raises(ValueError, match="text needs a caption for each image"):  # in a later batch too
        _ = record.fake


def test_matching_tells_captions_apart() -> None:
    adversary = make_adversary(discriminator=CONFIG, regularisers=(MatchingAwareConfig(),))
    record = make_record(adversary.discriminator)
    _, figures = adversary.own_loss(adversary.discriminator, record)
    assert figures["adversary/matching_aware"] > 0
    record.batch = record.batch._replace(captions=[("the same",)] * 8)
    record._shared.clear()
    assert adversary.own_loss(adversary.discriminator, record)[1]["adversary/matching_aware"] == 0


def test_it_learns_which_caption_belongs_to_which_image() -> None:
    torch.manual_seed(0)
    discriminator = CONFIG.build(3, (32, 32)).train()
    colours = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
    images = torch.stack([torch.tensor(rgb).view(3, 1, 1).expand(3, 32, 32) for rgb in colours.values()])
    right = byte_rows([f"a {name} square" for name in colours], 16)
    wrong = right.roll(1, 0)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    for _ in range(60):
        losses = [
            torch.nn.functional.softplus(sign * discriminator(images, rows).logits[0]).mean()
            for sign, rows in ((-1, right), (1, wrong))
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert (discriminator(images, right).logits[0].mean((1, 2, 3)) > 0).all()
    assert (discriminator(images, wrong).logits[0].mean((1, 2, 3)) < 0).all()
