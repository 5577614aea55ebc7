"""What a prior of texts and a style learnt: bits a code, retrieval by a judge, captions nobody trained on, near copies.

python examples/ablations/text_to_picture.py gpt-emoji-64 TRAIN_CODES TEST_CODES... --data FOLDER --out FOLDER

The folders of codes are what `tvq encode` wrote, captions and styles with them; FOLDER of the data holds parquet files
of the images, with the columns image, caption and style. Writes figures.json, and of each folder
captions-NAME.png and nearest-NAME.png.
"""

from __future__ import annotations

import argparse
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import prior
import tokenizers_vq as tvq
from prior.data import read_rows
from prior.measures.judge import Judge
from prior.measures.neighbours import nearest
from prior.model import Prior
from tokenizers_vq.data.shards import CodeShards, read_codes
from tokenizers_vq.tokenizer import Tokenizer

BATCH = 50


class Asked(NamedTuple):
    """What pictures show, in the order of their codes."""

    tokens: Tensor
    captions: list[str]
    styles: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior")
    parser.add_argument("train", type=Path, help="codes it was trained on")
    parser.add_argument("tests", type=Path, nargs="+", help="codes it was not trained on")
    parser.add_argument("--data", type=Path, required=True, help="folder of the parquet files with the images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000, help="pictures drawn for the retrieval")
    parser.add_argument("--rows", type=int, default=None, help="images of each folder that bits are measured on")
    parser.add_argument("--judge-size", type=int, default=112, help="pixels at which the judge looks")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = prior.load(options.prior)
    tok = tvq.load(model.config.tokenizer)
    tests = {folder.name: read(read_codes(folder)) for folder in options.tests}
    options.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"prior": options.prior, "guidance": options.guidance, "top_p": options.top_p}
    figures["bits"] = {name: bits(model, asked, options.rows) for name, asked in tests.items()}
    print(json.dumps(figures["bits"], indent=2), flush=True)
    settings = {"guidance": options.guidance, "top_p": options.top_p}
    judge = Judge("tf_efficientnet_lite0", "head", options.judge_size)
    figures["retrieval"] = retrieval(model, tok, judge, tests, options, settings)
    print(json.dumps(figures["retrieval"], indent=2), flush=True)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


def read(shards: CodeShards) -> Asked:
    """All rows of a folder; of several captions of an image the first."""
    rows = read_rows(shards, np.arange(len(shards)))
    names = rows["label_names"]
    return Asked(
        torch.as_tensor(np.asarray(rows["tokens"])).long(),
        [one[0] for one in rows["captions"]],
        [names[label] for label in np.asarray(rows["labels"])],
    )


def style_of(model: Prior) -> str:
    """The name of the class that the prior is told beside the text."""
    return next(name for name in model.condition.parts if name != "text")  # type: ignore[union-attr, operator]


def told(model: Prior, texts: Sequence[str | None], styles: Sequence[str | None]) -> list[dict[str, Any]]:
    """A condition a row."""
    return [{"text": text, style_of(model): style} for text, style in zip(texts, styles, strict=True)]


def bits(model: Prior, asked: Asked, rows: int | None) -> dict[str, float]:
    """Bits a code by what the prior is told; shuffled: every picture is told the text of another caption."""
    chosen = torch.randperm(len(asked.tokens), generator=torch.Generator().manual_seed(0))[:rows].tolist()
    texts, styles = [asked.captions[i] for i in chosen], [asked.styles[i] for i in chosen]
    # Half a turn of the captions in alphabetical order: no picture keeps its own, and each is asked for as often.
    order = sorted(range(len(texts)), key=texts.__getitem__)
    shuffled: list[str | None] = [None] * len(texts)
    for place, row in enumerate(order):
        shuffled[row] = texts[order[(place + len(order) // 2) % len(order)]]
    nothing = [None] * len(texts)
    variants: dict[str, tuple[Sequence[str | None], Sequence[str | None]]] = {
        "nothing": (nothing, nothing),
        "style": (nothing, styles),
        "text": (texts, nothing),
        "text and style": (texts, styles),
        "text of another picture, style": (shuffled, styles),
    }
    return {name: _bits(model, asked.tokens[chosen], *pair) for name, pair in variants.items()}


@torch.inference_mode()
def _bits(model: Prior, tokens: Tensor, texts: Sequence[str | None], styles: Sequence[str | None]) -> float:
    nats = 0.0
    for first in range(0, len(tokens), BATCH):
        part = slice(first, first + BATCH)
        empty = all(one is None for one in (*texts[part], *styles[part]))
        condition = None if empty else told(model, texts[part], styles[part])
        nats -= float(model.log_likelihood(tokens[part], condition).double().sum())
    return nats / tokens.numel() / float(np.log(2))


def retrieval(
    model: Prior, tok: Tokenizer, judge: Judge, tests: dict[str, Asked], options: Any, settings: dict[str, float]
) -> dict[str, Any]:
    """In how many cases the real picture nearest to the one made, as the judge sees it, is of the asked caption."""
    images, captions, of_train = real(options.data)
    features = judge.see(batches(images)).features
    found: dict[str, Any] = {"real pictures": len(images)}
    share = options.count // len(tests)
    for name, asked in tests.items():
        spread = np.linspace(0, len(asked.tokens) - 1, min(share, len(asked.tokens))).round().astype(int).tolist()
        texts, styles = [asked.captions[i] for i in spread], [asked.styles[i] for i in spread]
        drawn = draw(model, tok, texts, styles, settings)
        again = torch.cat([tok.decode(model.layout.unflatten(part)) for part in asked.tokens[spread].split(BATCH)])
        row: dict[str, Any] = {"asked": len(texts)}
        for what, made in (("samples", drawn), ("reconstructions", again)):
            places = nearest(judge.see(batches(made)).features, features).indices.tolist()
            row[what] = sum(captions[place] == text for place, text in zip(places, texts, strict=True))
        found[name] = row
        mine = features[torch.tensor(of_train)]
        close = nearest(judge.see(batches(drawn[:20])).features, mine).indices.tolist()
        kept = [place for place, learnt in enumerate(of_train) if learnt]
        pairs = [image for i, place in enumerate(close) for image in (drawn[i], images[kept[place]])]
        labels = [label for i, place in enumerate(close) for label in (texts[i], f"nearest: {captions[kept[place]]}")]
        sheet(pairs, labels, 8).save(options.out / f"nearest-{name}.png")
        sheet(list(drawn[:100]), texts[:100], 10).save(options.out / f"captions-{name}.png")
    return found


def draw(
    model: Prior, tok: Tokenizer, texts: Sequence[str], styles: Sequence[str], settings: dict[str, float]
) -> Tensor:
    """Pictures `(n, 3, H, W)`, one a text."""
    made = []
    for first in range(0, len(texts), BATCH):
        part = slice(first, first + BATCH)
        codes = model.sample(len(texts[part]), told(model, texts[part], styles[part]), first=first, **settings)
        made.append(tok.decode(model.layout.unflatten(codes)))
    return torch.cat(made)


def real(folder: Path) -> tuple[list[Tensor], list[str], list[bool]]:
    """All pictures `(3, H, W)`, their captions, and whether each is of the training file."""
    images, captions, of_train = [], [], []
    for file in sorted(folder.glob("*.parquet")):
        table = parquet.read_table(file, columns=["image", "caption"])
        for picture, caption in zip(table["image"].to_pylist(), table["caption"].to_pylist(), strict=True):
            images.append(tvq.images.read(Image.open(io.BytesIO(picture["bytes"])))[0])
            captions.append(caption)
            of_train.append(file.stem.startswith("train"))
    return images, captions, of_train


def batches(images: Sequence[Tensor] | Tensor) -> Iterator[Tensor]:
    """Stacks of pictures."""
    for first in range(0, len(images), BATCH):
        yield torch.stack(list(images[first : first + BATCH]))


def sheet(images: Sequence[Tensor], texts: Sequence[str], columns: int) -> Image.Image:
    """Pictures with a text under each."""
    width, height = 96, 130
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(page)
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = place % columns * width, place // columns * height
        page.paste(tvq.images.to_pil(image), (x + 16, y + 4))
        pen.multiline_text((x + 4, y + 70), "\n".join(textwrap.wrap(text, 16)[:5]), fill="black", font_size=10)
    return page


if __name__ == "__main__":
    main()
