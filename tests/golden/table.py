"""Every recorded tokenizer through `convert`, as a Markdown table: python -m tests.golden.table"""

from __future__ import annotations

import json
import logging

import torch
from safetensors.torch import load_file

from tests.conftest import SHARED
from tests.golden.test_families import cases, latent_error, recorded_codes, source
from tokenizers_vq.conversion import convert


def row(case: str) -> str:
    """One line: codes equal of all, largest errors of latents and image beside the fixture's tolerance, parameters."""
    folder = SHARED / "golden" / case
    io, meta = load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())
    tokenizer = convert(folder.parent.name, *source(folder))
    codes = tokenizer.encode(io["images"])
    parts = codes if isinstance(codes, tuple) else (codes,)
    if recorded := recorded_codes(io):
        equal = sum(int((a == b.reshape(a.shape)).sum()) for a, b in zip(parts, recorded, strict=True))
        shown = f"{equal} of {sum(part.numel() for part in parts)}"
    else:  # more bits than an integer holds
        vectors = tokenizer.quantizer.lookup(codes).reshape(io["quantized"].shape)
        close = (vectors - io["quantized"]).abs() <= meta.get("tolerance_quantized", 1e-5)
        shown = f"{int(close.all(1).sum())} of {close[:, 0].numel()} vectors"
    image = (tokenizer.decode(codes) - io.get("images_out_mapped", io["images_out"])).abs().max()
    with torch.no_grad():
        features = tokenizer.encode_features(io["images"])
    error = latent_error(features, io)
    latents = "-" if error is None else f"{error:.1e}"
    parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    cells = [case, shown, latents, f"{image:.1e}"]
    return " | ".join([*cells, f"{meta['tolerance_images']:.1e}", f"{parameters:,}"])


def main() -> None:
    logging.disable(logging.WARNING)
    print("| family/case | codes equal | latents, max error | image, max error | tolerance | parameters |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in cases():
        if "noise" in case:  # refused
            continue
        print(f"| {row(case)} |")


if __name__ == "__main__":
    main()
