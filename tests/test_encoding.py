"""The batch encoder: columns in and out, the tokenizer's own codes."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tokenizers_vq as tvq
from tokenizers_vq import devices
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.images import BrokenImage
from tokenizers_vq.quantizers import vector
from tokenizers_vq.resizing import resize_center_crop


@pytest.fixture
def tokenizer() -> tvq.Tokenizer:
    return tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16"]).eval()


@pytest.fixture
def sources(tmp_path: Path) -> list:
    """One picture in every form a column may hold it."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    picture, path, buffer = Image.fromarray(pixels), tmp_path / "a.png", io.BytesIO()
    picture.save(path)
    picture.save(buffer, format="PNG")
    content = buffer.getvalue()
    whole = {"bytes": content, "path": None}
    return [path, str(path), content, picture, pixels, whole, {"bytes": None, "path": str(path)}]


def test_columns_in_and_out(tokenizer, sources) -> None:
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    result = encoder({"image": sources, "label": np.arange(len(sources)), "key": list("abcdefg")})
    image = resize_center_crop(tvq.images.read(sources[0])[0], 64)[None]
    wanted = tokenizer.code_layout().flatten(tokenizer.encode(image))
    # the file is resized in 8 bits, this image in float: nearly the same pixels, so nearly the same codes
    assert (torch.from_numpy(result["codes"]) == wanted).float().mean() > 0.9
    assert all((row == result["codes"][0]).all() for row in result["codes"])
    assert result["codes"].shape == (7, 256)
    assert result["codes"].dtype == np.int64
    assert result["fingerprint"] == [tokenizer.fingerprint] * 7
    assert result["label"].tolist() == list(range(7))
    assert result["key"] == list("abcdefg")


def test_arrays_of_many_bands_in_a_range() -> None:
    bands = tvq.create("vqvae-tiny-64", ["encoder.width=16", "decoder.width=16", "channels=5"]).eval()
    encoder = BatchEncoder(bands, device="cpu", precision="fp32", range=(-5.0, 300.0))
    array = np.random.default_rng(0).uniform(-5, 300, (64, 64, 5)).astype(np.float32)
    image = torch.from_numpy((array + 5) / 152.5 - 1).permute(2, 0, 1)[None]
    wanted = bands.code_layout().flatten(bands.encode(image))
    result = encoder({"image": [array, np.moveaxis(array, -1, 0), array.tolist()]})
    assert (torch.from_numpy(result["codes"]) == wanted).float().mean() > 0.99
    with pytest.raises(ValueError, match=r"give their range \(data.range="):
        BatchEncoder(bands, device="cpu")({"image": [array]})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_arrays_that_datasets_hands_over_as_lists_keep_their_type(tokenizer, dtype: str) -> None:
    import datasets

    coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).repeat(8, 1).repeat(8, 2)
    dark = coarse // 256 + (coarse > 127)  # 0 and 1 alone: as uint8 nearly black, as uint16 too
    scale = {"uint8": 1, "uint16": 257}.get(dtype, 1 / 255)
    arrays = [(picture * scale).astype(dtype) for picture in (*coarse, dark[0])]
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    wanted = encoder({"image": arrays})["codes"]
    features = datasets.Features({"image": datasets.Array3D((64, 64, 3), dtype)})
    table = datasets.Dataset.from_dict({"image": arrays}, features=features)
    for batch_size in (1, 3):
        mapped = table.map(
            encoder, batched=True, batch_size=batch_size, remove_columns="image", load_from_cache_file=False
        )
        assert np.array_equal(np.array(mapped["codes"]), wanted)
    assert np.array_equal(encoder({"image": [array.tolist() for array in arrays]})["codes"], wanted)


def test_lists_without_a_type_are_of_one_type_together(tokenizer) -> None:
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32", on_broken="skip")
    bright, dark = np.full((8, 8, 3), 60000, np.uint16), np.full((8, 8, 3), 200, np.uint16)
    result = encoder({"image": [bright.tolist(), dark.tolist(), [[[1, 2, 3], [1]]], None], "row": [0, 1, 2, 3]})
    assert np.array_equal(result["codes"], encoder({"image": [bright, dark]})["codes"]) and result["row"] == [0, 1]
    assert encoder.broken["row 3"] == "null, no picture" and "make no array" in encoder.broken["row 2"]
    with pytest.raises(ValueError, match="row 0: int64 pixels need their range"):
        encoder({"image": [(bright.astype(int) - 70000).tolist()]})


def test_columns_of_one_array_or_tensor(tokenizer) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    wanted = encoder({"image": list(pictures)})["codes"]
    for column in (pictures, torch.from_numpy(pictures), torch.from_numpy(pictures).permute(0, 3, 1, 2)):
        assert np.array_equal(encoder({"image": column})["codes"], wanted)


def test_nothing_is_encoded_and_decoded(tokenizer) -> None:
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    assert encoder.encode(torch.zeros(0, 3, 64, 64)).shape == (0, 256)
    assert encoder.encode(torch.zeros(0, 3, 32, 64)).shape == (0, 128)
    assert encoder.decode(torch.zeros(0, 256, dtype=torch.int64)).shape == (0, 3, 64, 64)
    assert encoder({"image": []})["codes"].shape == (0, 256)
    with pytest.raises(ValueError, match=r"convert a path, PIL image or array with images\.read"):
        encoder.encode(Image.new("RGB", (64, 64)))


def test_codes_of_every_integer_type_are_decoded(tokenizer) -> None:
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    tokens = encoder.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    wanted = encoder.decode(tokens)
    for other in (tokens.to(torch.uint16), tokens.numpy().astype(np.uint16), tokens.tolist(), tokens.to(torch.int32)):
        assert torch.equal(encoder.decode(other), wanted)
    for wrong in (tokens.float(), tokens > 3):
        with pytest.raises(ValueError, match="codes"):
            encoder.decode(wrong)


def test_full_precision_is_the_tokenizers_own(tokenizer) -> None:
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    codes = tokenizer.encode(images)
    tokens = encoder.encode(images)
    assert tokens.equal(codes.flatten(1))
    assert encoder.decode(tokens.to(torch.int32)).equal(tokenizer.decode(codes))


def test_half_precision_quantizes_in_full(tokenizer, monkeypatch) -> None:
    seen = {}
    search = vector.nearest_codes
    monkeypatch.setattr(
        vector, "nearest_codes", lambda rows, *a, **k: seen.update(rows=rows.dtype) or search(rows, *a, **k)
    )
    tokenizer.decoder.register_forward_hook(lambda *arguments: seen.update(decoded=arguments[2].dtype))
    encoder = BatchEncoder(tokenizer, device="cpu", precision="bf16")
    decoded = encoder.decode(encoder.encode(torch.rand(2, 3, 64, 64) * 2 - 1))
    assert seen == {"rows": torch.float32, "decoded": torch.bfloat16}
    assert decoded.dtype == torch.float32


def test_datasets_maps_it(tokenizer, sources) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"image": [str(sources[0])] * 3, "label": [0, 1, 2]})
    table = table.cast_column("image", datasets.Image())
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    encoded = table.map(encoder, batched=True, batch_size=2, remove_columns="image", new_fingerprint="encoded")
    assert np.array(encoded["codes"]).shape == (3, 256)
    assert encoded["fingerprint"][:] == [tokenizer.fingerprint] * 3


def test_it_travels_to_other_processes(tokenizer, sources) -> None:
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32")
    again = pickle.loads(pickle.dumps(encoder))
    assert (again({"image": sources})["codes"] == encoder({"image": sources})["codes"]).all()


def test_broken_images_stop_or_leave_their_rows(tokenizer, sources) -> None:
    batch = {"image": [sources[0], {"bytes": b"none", "path": "x.jpg"}, sources[3]], "label": [0, 1, 2]}
    with pytest.raises(BrokenImage, match=r"x\.jpg"):
        BatchEncoder(tokenizer, device="cpu", precision="fp32")(batch)
    encoder = BatchEncoder(tokenizer, device="cpu", precision="fp32", on_broken="skip")
    result = encoder(batch)
    assert result["label"] == [0, 2]
    assert len(result["codes"]) == len(result["fingerprint"]) == 2
    assert list(encoder.broken) == ["x.jpg"]
    assert len(encoder({"image": ["nowhere.png", sources[0], {"bytes": None, "path": "gone.png"}]})["codes"]) == 1
    assert encoder.broken["nowhere.png"].startswith("no image file") and "gone.png" in encoder.broken
    assert encoder({"image": [b"none"]})["codes"].shape == (0, 256)


def test_a_missing_column_is_named(tokenizer) -> None:
    with pytest.raises(ValueError, match="no column 'image'; set image_column to one of: picture"):
        BatchEncoder(tokenizer, device="cpu", precision="fp32")({"picture": []})


def test_devices_and_precisions_are_resolved(monkeypatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert devices.resolve_precision("auto", cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert devices.resolve_precision("auto", cpu) == "fp32"
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert devices.resolve_precision("auto", cpu) == "fp32"
    assert devices.resolve_precision("bf16", cpu) == "bf16"
    assert devices.resolve_device("cpu") == cpu
    with pytest.raises(ValueError, match="no precision 'fp16'"):
        devices.resolve_precision("fp16", cpu)
    with pytest.raises(ValueError, match="no device 'gpu'"):
        devices.resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda' is not available here"):
        devices.resolve_device("cuda")


def test_convolutions_over_time_encode_in_bfloat16_too() -> None:
    narrow = ["image_size=32", "encoder.width=32", "decoder.width=32", "quantizer.num_codes=16"]
    tokenizer = tvq.create("emu3-f8", narrow)
    layouts = {tensor.ndim for tensor in tokenizer.parameters()}
    assert {4, 5} <= layouts
    found = BatchEncoder(tokenizer, precision="bf16", device="cpu")({"image": [np.zeros((32, 32, 3), dtype=np.uint8)]})
    assert np.asarray(found["codes"]).shape == (1, 16)
    weight = next(tensor for tensor in tokenizer.parameters() if tensor.ndim == 4 and tensor.shape[-1] == 3)
    assert weight.is_contiguous(memory_format=torch.channels_last)


PRECISIONS = """
import os, warnings
import torch
from tokenizers_vq.devices import full_float32
warnings.simplefilter("ignore")
SETTINGS = [
    "pass", "torch.set_float32_matmul_precision('high')", "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
]
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    names = ["", "cuda.matmul.", "cudnn.", "cudnn.conv.", "cudnn.rnn."]
    SETTINGS += [f"torch.backends.{name}fp32_precision = '{value}'" for name in names for value in ("tf32", "ieee")]
def state():
    found = []
    for where in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul"):
        try:
            found.append(eval(f"torch.backends.{where}.fp32_precision"))
        except AttributeError:
            found.append(None)
    return found
for setting in SETTINGS:  # each in a process of its own: what one says, the next could not read
    if os.fork() == 0:
        try:
            exec(setting)
            before = state()
            with full_float32(torch.device("cuda")):
                inside = state()
            assert state() == before, (before, state())
            assert inside[0] in (None, "ieee") and inside[1] in (None, "ieee"), inside
        except BaseException as error:
            print(setting, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.wait()[1] == 0, setting
"""


def test_whatever_precision_the_user_has_set_comes_back() -> None:
    done = subprocess.run([sys.executable, "-c", PRECISIONS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
