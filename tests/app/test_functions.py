"""What stands behind the page: the same figures as `tvq compare`, codes where they are, priors as they draw."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prior
import tokenizers_vq as tvq
from tests.app.conftest import SIDE, Folders
from tokenizers_vq.app import codes, drawing, looking, models, pictures
from tokenizers_vq.evaluation.codecs import PillowCodec, nearest_quality


@pytest.fixture(scope="module")
def opened(folders: Folders) -> models.Models:
    return models.open_models([str(folders.tokenizer), str(folders.prior)], device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def found(opened: models.Models, picture: Path) -> looking.Look:
    return looking.look(str(picture), opened, SIDE)


def test_a_prior_brings_its_tokenizer_which_stands_there_once(folders: Folders, opened: models.Models) -> None:
    assert (list(opened.tokenizers), list(opened.priors)) == (["tok"], ["pri"])
    alone = models.open_models([str(folders.prior)], device="cpu")
    assert list(alone.tokenizers) == ["tok"] and list(alone.priors) == ["pri"]


def test_unset_models_are_the_shipped_ones() -> None:
    assert all(models.names_prior(name) for name in prior.list_models("shipped"))
    assert not any(models.names_prior(name) for name in tvq.list_models("shipped"))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vqgan-tiny-64", "is a preset without trained weights"),
        ("gpt-tiny-imagenet-6", "did you mean 'gpt-tiny-imagenet-64'"),
        ("nothing-at-all", "called 'nothing-at-all'"),
    ],
)
def test_a_name_of_no_model_is_refused(name: str, line: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=line):
        models.open_models([name])


def test_the_views_are_what_the_tokenizer_and_the_files_hold(
    opened: models.Models, found: looking.Look, picture: Path
) -> None:
    image = tvq.images.read(picture, size=SIDE)
    tokenizer = opened.tokenizers["tok"].tokenizer
    original, made = found.view("original").picture, found.view("tok").picture
    factor = pictures.SHOWN // SIDE
    assert original.size == made.size == (pictures.SHOWN, pictures.SHOWN)
    small = np.asarray(original)[::factor, ::factor]
    assert (small == tvq.images.to_uint8(image[0]).permute(1, 2, 0).numpy()).all()
    decoded = tvq.images.to_pil(tokenizer.decode(tokenizer.encode(image))[0])
    assert (np.asarray(made)[::factor, ::factor] == np.asarray(decoded)).all()
    bits = tokenizer.code_layout().bits / SIDE**2
    assert f"tok: {bits:.2f} bits/pixel" in found.view("tok").caption
    assert [view.name.split()[0] for view in found.views] == ["original", "tok", "JPEG", "WebP", "AVIF"]
    # At 16 pixels no file is as small as 16 codes, and that is said.
    assert sum("times the bits of tok" in note for note in found.notes) == 3


def test_the_nearest_quality_is_that_of_a_search_through_all() -> None:
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9) * 2 - 1, 48, mode="bicubic").clamp(-1, 1)
    for format in ("jpeg", "webp"):
        sizes = {}
        for quality in range(1, 101):
            codec = PillowCodec(format, quality)
            sizes[quality] = codec.bits(codec.encode(image)).item()
        for bits in (1.0, 1.3 * sizes[1], sizes[50], 1e9):
            chosen = sizes[max(1, nearest_quality(format, image, bits))]
            best = min(abs(np.log(size / bits)) for size in sizes.values())
            assert abs(np.log(chosen / bits)) < best + 0.02


def test_a_code_is_found_where_the_map_shows_it(opened: models.Models, found: looking.Look) -> None:
    codec, seen = opened.tokenizers["tok"], found.seen["tok"]
    layout = codec.layout(SIDE, SIDE)
    drawn = codes.code_map(seen.codes, layout, 0)
    grid = seen.codes[0].numpy()
    assert (drawn.codes == grid).all() and drawn.commonest == np.bincount(grid.flatten()).argmax()
    cell = drawn.picture.width // 4
    assert drawn.at(2.5 * cell, 1.5 * cell) == grid[1, 2]
    assert drawn.at(drawn.picture.width, 5) is None
    code = drawn.commonest
    one = codes.find_code(codec, seen, 0, code)
    assert (one.places, one.of) == ((grid == code).sum(), 16)
    assert codes.caption(one, layout, 0).startswith(f"Code {code} stands ")
    # As bright as the reconstruction where it stands, and there alone.
    where, decoded = np.asarray(one.where), np.asarray(pictures.shown(seen.decoded[0]))
    side = where.shape[0] // 4
    for (row, column), here in np.ndenumerate(grid == code):
        block = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert (where[block] == decoded[block]).all() == here
    alone = tvq.images.to_pil(codec.tokenizer.decode(torch.full((1, 4, 4), code))[0])
    assert (np.asarray(one.alone)[:: pictures.SHOWN // SIDE, :: pictures.SHOWN // SIDE] == np.asarray(alone)).all()


def test_every_stream_of_several_grids_and_levels_has_its_map(tmp_path: Path, picture: Path) -> None:
    for name, count in (("vqvae2-tiny-64", 2), ("rqvae-tiny-64", 4)):
        narrow = ["image_size=32", "encoder.width=8", "decoder.width=8"]
        narrow += [] if name.startswith("vqvae2") else ["encoder.latent_width=8", "decoder.latent_width=8"]
        tvq.create(name, narrow).save_pretrained(tmp_path / name)
        several = models.open_models([str(tmp_path / name)], device="cpu", precision="fp32")
        codec = several.tokenizers[name]
        seen = looking.look(str(picture), several, 32).seen[name]
        layout = codec.layout(32, 32)
        assert len(codes.streams(layout)) == len(set(codes.streams(layout))) == count
        for stream, row in enumerate(layout.split(seen.codes)):
            drawn = codes.code_map(seen.codes, layout, stream)
            assert (drawn.codes.flatten() == row[0].numpy()).all()
            assert codes.find_code(codec, seen, stream, drawn.commonest).places >= 1


def test_a_row_of_codes_has_a_map_without_places(picture: Path) -> None:
    layout = tvq.CodeLayout(((20,),), 1, (8,))
    row = torch.arange(20)[None] % 8
    drawn = codes.code_map(row, layout, 0)
    assert drawn.codes.shape == (2, 16) and drawn.codes[1, 3] == 3 and drawn.codes[1, 4] == -1
    assert drawn.at(drawn.picture.width - 1, drawn.picture.height - 1) is None
    one = codes.Found(3, 2, 20, drawn.picture, None, drawn.picture)
    assert codes.caption(one, layout, 0).startswith(
        "Code 3 stands 2 times among 20 places. Codes of this grid stand in a row"
    )


def test_pictures_are_those_that_the_prior_draws(opened: models.Models) -> None:
    one = opened.priors["pri"]
    wish = drawing.Wish(pictures=2, seed=3, guidance=2.0, top_p=0.9)
    drawn = drawing.sample(one, {"class": "barn"}, wish)
    tokens = one.prior.sample(2, "barn", seed=3, guidance=2.0, top_p=0.9)
    assert torch.equal(torch.stack(drawn), one.tokenizer.decode(one.prior.layout.unflatten(tokens)))
    assert drawing.choices(one.condition) == ["goldfish", "tailed frog", "barn"]
    assert drawing.told(one, {"class": ""}) is None


@pytest.mark.parametrize(
    ("given", "wish", "line"),
    [
        ({"class": "brn"}, drawing.Wish(), "did you mean 'barn'"),
        ({}, drawing.Wish(guidance=2.0), "guidance 2 needs a class"),
        ({}, drawing.Wish(pictures=17), "ask for 1 to 16"),
        ({}, drawing.Wish(temperature=-1.0), "temperature"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(opened: models.Models, given: dict, wish: drawing.Wish, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        drawing.sample(opened.priors["pri"], given, wish)


def test_only_what_is_painted_changes(opened: models.Models, picture: Path) -> None:
    one, mask = opened.priors["pri"], np.zeros((512, 512), bool)
    mask[256:384, 256:384] = True  # of the 16 pixels those from 8 to 12
    drawn = drawing.fill(one, str(picture), mask, {}, drawing.Wish(pictures=3))
    image = tvq.images.read(picture, size=SIDE)[0]
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[8:12, 8:12] = True
    for made in drawn:
        assert torch.equal(made[:, ~inside], image[:, ~inside])
        assert not torch.equal(made[:, inside], image[:, inside])
    with pytest.raises(ValueError, match="nothing is painted yet"):
        drawing.fill(one, str(picture), np.zeros((512, 512), bool), {}, drawing.Wish())
    assert "MaskGIT" in drawing.remarks(one)[0]


def test_pictures_out_of_bounds_are_refused_before_they_are_decoded(huge: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too large: 6,000 x 5,000 pixels"):
        pictures.read(str(huge), 3, SIDE)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no picture that can be read"):
        pictures.read(str(tmp_path / "x.png"), 3, SIDE)
    with pytest.raises(ValueError, match="give a picture first"):
        pictures.read(None, 3, SIDE)
    cut = tmp_path / "cut.png"
    Image.new("RGB", (64, 64), "red").save(cut)
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(ValueError, match="no picture that can be read"):
        pictures.read(str(cut), 3, SIDE)


def test_a_size_that_a_tokenizer_cannot_take_leaves_it_out(tmp_path: Path, folders: Folders, picture: Path) -> None:
    tvq.create("vqvae-tiny-64", ["encoder.width=8", "decoder.width=8", "channels=1"]).save_pretrained(tmp_path / "grey")
    both = models.open_models([str(folders.tokenizer), str(tmp_path / "grey")], device="cpu", precision="fp32")
    assert looking.sizes(both) == [16, 32, 64, 128, 256]
    found = looking.look(str(picture), both, 64)
    assert list(found.seen) == ["tok"] and "Left out grey: it takes images of 1 channels." in found.notes
    with pytest.raises(ValueError, match="no tokenizer here takes"):
        looking.look(str(picture), both, 63)


def test_the_command_says_what_is_missing(tvq_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = tvq_command("app")
    assert done.status == 2 and done.err == "tvq: the page needs gradio: pip install 'tokenizers-vq[app]'\n"


def test_a_port_that_is_taken_is_one_line(tvq_command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = tvq_command("app", "--port", port)
    assert done.status == 2 and done.err.startswith(f"tvq: --port: cannot listen at 127.0.0.1:{port}")
    assert len(done.err.splitlines()) == 1
