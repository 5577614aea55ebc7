"""The README's pictures: the same images as originals and as several tokenizers give them back, a row each.

python docs/figures.py --data test.parquet --out docs/images/reconstructions.png runs/vqvae-tiny-64 runs/vqgan-tiny-64
python docs/figures.py --data photos/ --out docs/images/shipped.png vit-vqgan-tiny-64 \
  --prior gpt-tiny-imagenet-64 --classes goldfish lemon
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import prior
import tokenizers_vq as tvq
from tokenizers_vq import images
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("models", nargs="+", help="runs or saved tokenizers, a row each")
parser.add_argument("--data", required=True, help="images")
parser.add_argument("--count", type=int, default=12, help="columns, evenly spread over the data")
parser.add_argument("--enlarge", type=int, default=2, help="pixels to a side of a pixel")
parser.add_argument("--prior", help="prior of the last tokenizer: two rows of samples below")
parser.add_argument("--classes", nargs="+", default=[], help="classes to draw, over the columns in turn")
parser.add_argument("--guidance", type=float, default=2.0)
parser.add_argument("--out", type=Path, required=True, help="PNG file")
chosen = parser.parse_args()

tokenizers = [tvq.load(model) for model in chosen.models]
size, channels = tokenizers[0].config.image_size, tokenizers[0].config.channels
data = DataConfig(path=chosen.data, limit=chosen.count)
(batch,) = evaluation_batches(data, image_size=size, channels=channels, batch_size=chosen.count)
rows = [batch["images"], *(tok.decode(tok.encode(batch["images"])) for tok in tokenizers)]
if chosen.prior:
    model, sampler = prior.load(chosen.prior), prior.Sampler(guidance=chosen.guidance)
    each = 2 * chosen.count // len(chosen.classes)
    drawn = [
        tokenizers[-1].decode(model.layout.unflatten(model.sample(each, name, sampler))) for name in chosen.classes
    ]
    rows += [torch.cat([part[row::2] for part in drawn]) for row in (0, 1)]
sheet = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
sheet = sheet.repeat_interleave(chosen.enlarge, dim=1).repeat_interleave(chosen.enlarge, dim=2)
chosen.out.parent.mkdir(parents=True, exist_ok=True)
images.to_pil(sheet).save(chosen.out)
print(chosen.out)
