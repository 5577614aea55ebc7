"""Filling in by pixels: what is kept, what is drawn, what is refused; `tvq-prior inpaint`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import tokenizers_vq as tvq
from prior.cli import main
from prior.conditions import ClassConfig
from prior.inpainting import inpaint, known_codes
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.networks.maskgit import MaskGitConfig
from prior.sequences import LayoutConfig
from tests.test_hierarchical import make
from tokenizers_vq.tokenizer import Tokenizer

NETWORKS = {
    "maskgit": MaskGitConfig(layers=1, dim=16, heads=1),
    "gpt": GptConfig(layers=1, dim=16, heads=1, multiple=16),
}


def prior_of(tok: Tokenizer, kind: str, **fields: Any) -> Prior:
    torch.manual_seed(0)
    made = PriorConfig(
        network=NETWORKS[kind],
        condition=ClassConfig(num_classes=2),
        layout=LayoutConfig.of(tok.code_layout()),
        fingerprint=tok.fingerprint,
        **fields,
    )
    return Prior(made).eval()


def box(side: int, first: int, last: int) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[first:last, first:last] = True
    return mask


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("several", [False, True])
def test_codes_outside_the_mask_stay(kind: str, several: bool, tokenizer: Path) -> None:
    tok = make(1, 1).eval() if several else tvq.load(tokenizer)
    side = tok.config.size[0]
    image, mask = torch.rand(1, 3, side, side) * 2 - 1, box(side, side // 2, side)
    prior = prior_of(tok, kind)
    found = inpaint(prior, tok, image, mask, n=3, condition=1, temperature=3.0, seed=4)
    codes = prior.layout.flatten(tok.encode(image))
    assert found.images.shape == (3, 3, side, side) and found.images.abs().max() <= 1
    assert 0 < int(found.drawn.sum()) < prior.layout.length
    assert torch.equal(found.codes[:, ~found.drawn], codes[:, ~found.drawn].expand(3, -1))
    assert (found.codes[0] != found.codes[1]).any()
    touched = tok.mask_codes(mask)
    parts = touched if isinstance(touched, tuple) else (touched,)
    assert torch.equal(found.drawn, torch.cat([part.flatten() for part in parts]))
    assert torch.equal(known_codes(prior, tok, image, mask) < 0, found.drawn[None])
    assert int(inpaint(prior, tok, image, mask, condition=1, ring=0).drawn.sum()) < int(found.drawn.sum())
    kept = inpaint(prior, tok, image, mask, n=3, condition=1, temperature=3.0, seed=4, keep_pixels=True)
    assert torch.equal(kept.codes, found.codes)
    assert torch.equal(kept.images[:, :, ~mask], image[:, :, ~mask].expand(3, -1, -1))
    assert torch.equal(kept.images[:, :, mask], found.images[:, :, mask])


def test_a_masked_prior_uses_all_codes_that_are_kept(tokenizer: Path) -> None:
    tok, drawn = tvq.load(tokenizer), {}
    known = torch.randint(0, 16, (16,))
    known[4:8] = -1
    other = torch.where(torch.arange(16) < 8, known, (known + 5) % 16)  # what comes after the unknown codes
    for kind in NETWORKS:
        prior = prior_of(tok, kind)
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        drawn[kind] = torch.equal(*(prior.sample(64, 0, known=one)[:, 4:8] for one in (known, other)))
    assert drawn == {"maskgit": False, "gpt": True}  # the autoregressive one does not know what follows


def test_what_is_refused(tokenizer: Path) -> None:
    tok = tvq.load(tokenizer)
    prior, image = prior_of(tok, "maskgit"), torch.zeros(1, 3, 16, 16)
    for given, mask, says in (
        (image, box(16, 3, 3), "the mask touches no pixel"),
        (image, box(32, 3, 9), "are of one size"),
        (image.expand(2, -1, -1, -1), box(16, 3, 9), "are of one size"),
        (torch.zeros(1, 3, 32, 32), box(32, 3, 9), r"a picture of 32x32 pixels has codes on \[\[8, 8\]\], the prior"),
        (image, box(16, 3, 9).float(), "must be bool"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            inpaint(prior, tok, given, mask, condition=0)
        assert "\n" not in str(caught.value)
    for known, says in (
        (torch.zeros(1, 5, 4, dtype=torch.long), "do not fit this layout"),
        (torch.zeros(17, dtype=torch.long), r"must be int64 \(B, 16\)"),
        (torch.full((16,), 16), r"outside \[0, 16\)"),
        (torch.full((16,), -2), "is -2, outside"),
        (torch.zeros(2, 4, 4, dtype=torch.long), "known holds 2 rows, 3 samples are asked for"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            prior.sample(3, 0, known=known)
        assert "known" in str(caught.value) and "\n" not in str(caught.value)


def paint(folder: Path, side: int = 20) -> tuple[Path, Path]:
    """A picture and a mask that is white in its upper left corner."""
    image, mask = folder / "image.png", folder / "mask.png"
    Image.fromarray((torch.rand(side, side, 3) * 255).byte().numpy()).save(image)
    pixels = torch.zeros(side, side, dtype=torch.uint8)
    pixels[: side // 4, : side // 4] = 255
    Image.fromarray(pixels.numpy()).save(mask)
    return image, mask


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_command(kind: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "prior"
    prior_of(tvq.load(tokenizer), kind, tokenizer=str(tokenizer)).save_pretrained(folder)
    image, mask = paint(tmp_path)
    call = ["inpaint", str(folder), str(image), str(mask), "--class", "1", "--count", "3", "--keep-pixels"]

    def run(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([*call, *more])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    code, out, err = run("--out", str(tmp_path / "out.png"), "guidance_schedule=linear", "--guidance", "2")
    assert code == 0 and "4 of 16 codes drawn anew, 3 times" in out, err
    assert ("draws codes in order" in err) == (kind == "gpt")
    assert Image.open(tmp_path / "out.png").size[0] > 5 * 16
    code, out, _ = run("--out", str(tmp_path / "out"), "--ring", "0")
    assert code == 0 and "1 of 16 codes" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"{index:05d}.png" for index in range(3)),
        "given.png",
    ]
    drawn, given = (tvq.images.read(tmp_path / "out" / name) for name in ("00000.png", "given.png"))
    assert torch.equal(drawn[..., 8:, 8:], given[..., 8:, 8:])  # the picture's own pixels
    Image.new("L", (30, 20), 255).save(mask)
    code, _, err = run("--out", str(tmp_path / "no.png"))
    assert code == 2 and "a mask has the size of its picture" in err and err.count("\n") == 1
    Image.new("L", (20, 20), 0).save(mask)
    code, _, err = run("--out", str(tmp_path / "no.png"))
    assert code == 2 and "touches no pixel" in err
