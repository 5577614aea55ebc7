"""Some grids given others, and a chain of such priors: the top codes of VQ-VAE-2, then the bottom ones given them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import prior
import tokenizers_vq as tvq
from prior import compression
from prior.cli.app import main
from prior.conditions import ClassConfig, GridsConfig, SeveralConfig
from prior.data import Data, read_rows
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.networks.pixelcnn import PixelCnnConfig
from prior.networks.pixelsnail import PixelSnailConfig
from prior.recipe import load_recipe
from prior.scoring import score
from prior.sequences import LayoutConfig
from tokenizers_vq.codes import CodeLayout

WHOLE = CodeLayout(((1, 2), (2, 4)), 1, (3, 2))
SNAIL = PixelSnailConfig(layers=1, residuals=1, dim=8, hidden=8, kernel=3, heads=2, dropout=0.0)


def part(network, grids: tuple[int, ...], given: tuple[int, ...] = (), classes: int | None = None) -> Prior:
    """A prior of some grids, given others and a class, with weights large enough to tell codes apart."""
    told = [GridsConfig(grids=given, blocks=1, layout=LayoutConfig.of(WHOLE), inner_dropout=0.0)] if given else []
    told += [ClassConfig(num_classes=classes)] if classes else []
    condition = SeveralConfig(conditions=tuple(told), dropout=0.0) if len(told) > 1 else told[0] if told else None
    fields = {} if condition is None else {"condition": condition}
    layout = LayoutConfig.of(WHOLE.part(grids))
    config = PriorConfig(network=network, layout=layout, grids=grids, whole=LayoutConfig.of(WHOLE), **fields)
    torch.manual_seed(0)
    made = Prior(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def every(layout: CodeLayout) -> Tensor:
    sizes = torch.tensor(layout.sizes)[layout.streams()].tolist()
    return torch.cartesian_prod(*[torch.arange(size) for size in sizes])


BOTTOMS = {
    "pixelcnn": PixelCnnConfig(layers=2, dim=8, head_dim=8),
    "pixelsnail": SNAIL,
    "gpt": GptConfig(layers=1, dim=8, heads=2, multiple=8),
}


@pytest.mark.parametrize("kind", BOTTOMS)
def test_a_chain_is_a_distribution_and_draws_by_it(kind: str) -> None:
    chain = prior.Chain([part(SNAIL, (0,)), part(BOTTOMS[kind], (1,), given=(0,))])
    everything, top = every(WHOLE), every(WHOLE.part((0,)))
    assert chain.exact and chain.layout == WHOLE
    with torch.no_grad():
        found = chain.log_likelihood(everything)
        own = chain.priors[0].log_likelihood(top)
    assert abs(float(found.double().exp().sum()) - 1) < 1e-4
    # The likelihood is the sum over the chain: marginals of the top are those of the top's prior.
    marginals = torch.stack([found[(everything[:, :2] == row).all(dim=1)].logsumexp(0) for row in top])
    torch.testing.assert_close(marginals, own, atol=1e-4, rtol=1e-4)
    count = 4000
    drawn = chain.sample(count)
    digits = torch.tensor([768, 256, 128, 64, 32, 16, 8, 4, 2, 1])
    index = torch.zeros(3 * 768, dtype=torch.int64)
    index[(everything * digits).sum(dim=1)] = torch.arange(len(everything))
    shares = torch.bincount(index[(drawn * digits).sum(dim=1)], minlength=len(everything)) / count
    wanted = found.exp()
    assert ((shares - wanted).abs() < 5 * (wanted / count).sqrt() + 2 / count).all()


def test_what_is_given_changes_what_is_likely_where_it_stands() -> None:
    bottom = part(PixelCnnConfig(layers=1, dim=8, head_dim=8, first_kernel=3), (1,), given=(0,))
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with torch.no_grad():
        one, other = (bottom.logits(tokens, torch.tensor([[0, code]])) for code in (0, 1))
    assert ((one - other).abs().amax(dim=-1) > 1e-4).all()  # 3x3 windows over the two given places
    for wrong, says in (
        (None, r"never learnt to do without the codes of grids \[0\]: draw them with the prior"),
        (torch.tensor([[0, 3]]), r"token 1 of row 0 is 3, outside \[0, 3\)"),
        (torch.zeros(1, 3, dtype=torch.int64), r"tokens must be int64 \(B, 2\)"),
        ("top", "given codes are int64"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            bottom.logits(tokens, wrong)
        assert "\n" not in str(error.value)


def test_samples_of_a_chain_follow_seed_class_and_known() -> None:
    chain = prior.Chain([part(SNAIL, (0,), classes=3), part(SNAIL, (1,), given=(0,), classes=3)])
    drawn = chain.sample(6, [0, 1, 2, 0, 1, 2], seed=3)
    assert torch.equal(drawn, chain.sample(6, [{"class": label} for label in (0, 1, 2, 0, 1, 2)], {"seed": 3}))
    assert torch.equal(drawn[2:4], chain.sample(2, [2, 0], seed=3, first=2))
    assert not torch.equal(drawn, chain.sample(6, [0, 1, 2, 0, 1, 2], seed=4))
    known = torch.where(torch.rand(6, 10) < 0.5, drawn, -1)
    again = chain.sample(6, 1, known=known)
    assert torch.equal(again[known >= 0], known[known >= 0]) and bool((again >= 0).all())
    tokens = drawn[:2]
    with torch.no_grad():
        given = [{"class": 1, "given": row[:2]} for row in tokens]
        parts = [chain.priors[0].log_likelihood(tokens[:, :2], 1), chain.priors[1].log_likelihood(tokens[:, 2:], given)]
        assert torch.equal(chain.log_likelihood(tokens, {"class": 1}), parts[0] + parts[1])
    with pytest.raises(ValueError, match="no prior of this chain is told text; they are told class"):
        chain.sample(1, {"text": "a cat"})


def test_what_makes_no_chain_is_one_line() -> None:
    top, bottom = part(SNAIL, (0,)), part(SNAIL, (1,), given=(0,))
    alone = Prior(PriorConfig(network=SNAIL, layout=LayoutConfig.of(WHOLE.part((0,)))))
    for priors, says in (
        ([top], "a chain needs two priors or more"),
        ([top, alone], "prior 2 of the chain models all codes of an image by itself"),
        (
            [bottom, top],
            r"prior 1 of the chain is told grids \[0\], which none before it draws: put coarser ones first",
        ),
        ([top, bottom, bottom], r"grids \[1\] are drawn twice, the second time by prior 3"),
        ([top, top], r"grids \[0\] are drawn twice"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            prior.Chain(priors)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"grids: \[1\] are modelled and told"):
        part(SNAIL, (1,), given=(1,))
    with pytest.raises(ValueError, match=r"no part \[2\] of 2 grids"):
        WHOLE.part((2,))


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "tokenizer"
    torch.manual_seed(0)
    tvq.create("vqvae2-tiny-64", ["image_size=32"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codes(chained: Path, write_codes: Callable[..., Path]) -> Path:
    return write_codes(chained.parent / "codes", count=24, of=chained, image_size=32)


SMALL = [
    "precision=fp32",
    "batch_size=4",
    "steps=2",
    "log_every=1",
    "evaluate_every=2",
    "held_out=0.25",
    "image_every=2",
]


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_a_chain_is_trained_from_one_folder_and_drawn(codes: Path, tmp_path: Path, capsys) -> None:
    for name in ("top", "bottom"):
        small = ["model.network.dim=16", "model.network.hidden=8", "model.network.layers=1", *SMALL]
        assert call("train", f"pixelsnail-{name}-tiny", codes, *small, "--out", tmp_path / name, "--device", "cpu") == 0
    layout = tvq.load(codes.parent / "tokenizer").code_layout()
    top, bottom = prior.load(tmp_path / "top"), prior.load(tmp_path / "bottom")
    assert top.layout == layout.part((0,)) and bottom.layout == layout.part((1,)) and bottom.config.given == (0,)
    assert score(str(tmp_path / "bottom")).tokens == 6 * bottom.layout.length
    capsys.readouterr()
    assert call("sample", tmp_path / "bottom", "--out", tmp_path / "a.png", "--device", "cpu") == 2
    assert "models grids [1] of its tokenizer's codes alone" in " ".join(capsys.readouterr().err.split())
    out = tmp_path / "out"
    drawn = ("--count", 3, "--codes", "--out", out, "--device", "cpu", "--class", "dog")
    assert call("sample", tmp_path / "top", tmp_path / "bottom", *drawn) == 0
    kept = json.loads((out / "samples.json").read_text())
    assert kept["images"][0]["class"] == 1 and len(kept["images"][0]["codes"]) == layout.length
    chain = prior.Chain([top, bottom])
    assert chain.sample(3, 1)[0].tolist() == kept["images"][0]["codes"]
    assert call("sample", tmp_path / "bottom", tmp_path / "top", *drawn) == 2
    assert "put coarser ones first" in " ".join(capsys.readouterr().err.split())
    pack = ("--out", tmp_path / "x.tvqp", "--device", "cpu")
    for arguments, says in (
        (("score", tmp_path / "top", tmp_path / "bottom"), "holds a model, not codes or images: one prior is measured"),
        (
            ("compress", tmp_path / "top", codes, *pack),
            "models grids [0] of its tokenizer's codes alone: compress with",
        ),
        (("evaluate", tmp_path / "top", "--data", codes), "models grids [0] of its tokenizer's codes alone"),
    ):
        assert call(*arguments) == 2
        assert says in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="compressed by one prior, not by a chain"):
        compression.compress(chain, chain.sample(1))  # type: ignore[arg-type]


def test_codes_of_some_grids_are_the_columns_of_all(codes: Path) -> None:
    recipe = load_recipe("pixelsnail-bottom-tiny", codes, SMALL)
    data = Data(recipe)
    whole = data.shards.whole
    assert whole is not None
    batch = read_rows(data.shards, np.arange(4))
    parts = whole.layout.unflatten(batch["whole"])
    assert torch.equal(batch["tokens"], parts[1].flatten(1)) and data.shards.layout == whole.layout.part((1,))
    with pytest.raises(ValueError, match=r"model.grids: .* no part \[2\] of 2 grids"):
        Data(load_recipe("pixelsnail-bottom-tiny", codes, [*SMALL, "model.grids=[2]"]))
