"""Kinds of priors side by side, on codes of small tokenizers of 32 px: bits a code, distance of samples from images.

python examples/ablations/priors.py TRAIN TEST OUT [PART ...] [PATH=VALUE ...]

Parts, all of them where none is named: `bits` (unigram, PixelCNN, GPT, RAR, MaskGIT on the codes of one VQGAN, equal
in parameters and steps), `kinds` (VQ-VAE-2's chain, VAR, RQ on tokenizers of their own), `distance` (feature distance
of samples: PixelCNN and GPT on codes of a VQ-VAE and of the VQGAN, then those of `kinds`), `orders` (MaskGIT by
confidence and in Halton's order, 4 to 64 steps). `PATH=VALUE` goes to the priors' recipes, such as `steps=2000`;
TOKENIZER_STEPS, SAMPLES and SEEDS are variables of the environment. All is kept in OUT: a killed command goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prior
import tokenizers_vq as tvq
from prior.chain import Chain
from prior.data import Data, read_rows
from prior.decoding import decode
from prior.measures import Judge, Seen
from prior.model import Prior
from prior.recipe import PriorRecipe, load_recipe
from prior.training import train
from tokenizers_vq.data import DataConfig
from tokenizers_vq.data.loading import evaluation_batches
from tokenizers_vq.data.shards import write_codes
from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.training import recipe as tokenizer_recipes
from tokenizers_vq.training import runs
from tokenizers_vq.writing import write_atomically

TOKENIZER_STEPS, SAMPLES, SEEDS = (
    int(os.environ.get(name, value)) for name, value in (("TOKENIZER_STEPS", 1200), ("SAMPLES", 2000), ("SEEDS", 2))
)
LPIPS = "losses=[{kind: l2}, {kind: lpips, net: squeeze}]"
PATCHGAN = (
    "adversary={discriminator: {kind: patchgan, width: 32, layers: 2, norm: spectral}, "
    "weight: 0.8, max_adaptive: 1.0, start: 0.3, warmup: 0.1}"
)
LEVELS = "{kind: residual, levels: 4, shared: true, book: {kind: vector, num_codes: 1024, dim: 32, revive_after: 100}}"
SCALES = (
    "{kind: multiscale, scales: [1, 2, 3, 4, 6, 8], book: {kind: vector, num_codes: 1024, dim: 16, revive_after: 100}}"
)
TOKENIZERS = {
    "vqvae": ["losses=[{kind: l2}]"],
    "vqgan": [LPIPS, PATCHGAN],
    "vqvae2": ["model=vqvae2-tiny-64", "model.image_size=32", "losses=[{kind: l2}]"],
    "rqvae": [f"model.{part}.multipliers=[1, 2, 4, 4]" for part in ("encoder", "decoder")]
    + [f"model.quantizer={LEVELS}", LPIPS, PATCHGAN],
    "var": [f"model.quantizer={SCALES}", LPIPS, PATCHGAN],
}
"""what each changes in recipes/narrow-32.yaml"""
PRIORS = {
    "pixelcnn": ("pixelcnn-tiny", "dim=57"),
    "gpt": ("gpt-tiny", "dim=128", "multiple=32"),
    "rar": ("rar-tiny", "dim=104"),
    "maskgit": ("maskgit-tiny", "dim=128"),
    "var": ("var-tiny", "dim=128"),
    "rq": ("rq-tiny", "dim=128"),
    "top": ("pixelsnail-top-tiny", "dim=64"),
    "bottom": ("pixelsnail-bottom-tiny", "dim=64"),
}
"""recipes, and the widths at which those of `bits` have 1.05 to 1.10 million weights"""


class Table:
    """Figures by name, measured once and kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        if name not in self.found:
            self.found[name] = measure()
            write_atomically(self.path, json.dumps(self.found, indent=1))
        print(f"{name}: {self.found[name]}", flush=True)
        return self.found[name]


class Study:
    """The runs of a folder, each made when it is first asked for."""

    def __init__(self, photos: str, test: str, out: Path, overrides: list[str]) -> None:
        self.sets, self.out, self.overrides = {"train": photos, "test": test}, out, overrides
        self.table = Table(out / "figures.json")
        self.judge: Judge | None = None

    def tokenizer(self, name: str) -> Path:
        """The run of a tokenizer, and its codes of both sets beside it."""
        out = self.out / name
        if not (out / "codes-test" / "codes.json").exists():
            asked = [*TOKENIZERS[name], f"data.path={self.sets['train']}", f"steps={TOKENIZER_STEPS}"]
            narrow = Path(__file__).parent / "recipes" / "narrow-32.yaml"
            runs.train(tokenizer_recipes.load_recipe(narrow, asked), out, device="cpu")
            for part, path in self.sets.items():
                data = DataConfig(path=path, limit=2 * SAMPLES if part == "test" else None)
                write_codes(BatchEncoder(str(out), device="cpu"), data, out / f"codes-{part}")
        return out

    def recipe(self, tokenizer: str, kind: str, seed: int) -> PriorRecipe:
        """Of a prior of a kind on the codes of a tokenizer."""
        folder, (name, *sizes) = self.tokenizer(tokenizer), PRIORS[kind]
        asked = [*(f"model.network.{size}" for size in sizes), f"seed={seed}", "steps=600", "image_every=0"]
        asked += ["checkpoint_every=600"]
        asked += [f"held_out_codes={folder / 'codes-test'}", "evaluate_every=600", *self.overrides]
        return load_recipe(name, folder / "codes-train", asked).replace(tokenizer=str(folder))

    def prior(self, tokenizer: str, kind: str, seed: int) -> Prior:
        """A trained one."""
        out = self.out / f"{tokenizer}-{kind}-{seed}"

        def measured() -> dict[str, float]:
            found = train(self.recipe(tokenizer, kind, seed), out, device="cpu")
            weights = sum(parameter.numel() for parameter in prior.load(out).parameters())
            return {"bits": found.bits_per_token, "unigram": found.unigram or 0.0, "weights": weights}

        self.table.get(f"{tokenizer} {kind} {seed}", measured)
        return prior.load(out)

    def see(self, images: torch.Tensor) -> Seen:
        """What the judge says of them, by the layer before the last three blocks of EfficientNet-Lite0."""
        self.judge = self.judge or Judge(layer="blocks.4")
        return self.judge.see(images.split(50))

    def real(self) -> list[Seen]:
        """Test images in two halves, at most SAMPLES each; kept."""
        path = self.out / f"real-{SAMPLES}.pt"
        if not path.exists():
            data = DataConfig(path=self.sets["test"], limit=2 * SAMPLES)
            found = evaluation_batches(data, image_size=(32, 32), channels=3, batch_size=50)
            seen = self.see(torch.cat([batch["images"] for batch in found]))
            torch.save([tuple(seen.part(slice(half, None, 2))) for half in (0, 1)], path)
        return [Seen(*half) for half in torch.load(path)]

    def distance(self, made: Prior | Chain, tokenizer: str, **sampler: Any) -> float:
        """Feature distance of samples, told the classes of the first half of the test images, from that half."""
        first, _ = self.real()
        tok, data = tvq.load(self.tokenizer(tokenizer)), Data(self.recipe(tokenizer, "gpt", 0))
        told = read_rows(data.held, np.arange(len(data.held))[::2])["labels"][: len(first.features)]
        drawn = [
            decode(tok, made, made.sample(len(part), part, seed=0, first=50 * number, **sampler))
            for number, part in enumerate(told.split(50))
        ]
        return self.see(torch.cat(drawn)).distance(first)

    def decoded(self, tokenizer: str) -> float:
        """The distance of that half as the tokenizer decodes its codes: no prior comes nearer."""
        first, _ = self.real()
        tok, data = tvq.load(self.tokenizer(tokenizer)), Data(self.recipe(tokenizer, "gpt", 0))
        tokens = read_rows(data.held, np.arange(len(data.held))[::2])["tokens"][: len(first.features)]
        images = [tok.decode(data.held.layout.unflatten(part)).clamp(-1, 1) for part in tokens.split(50)]
        return self.see(torch.cat(images)).distance(first)

    def bits(self) -> None:
        for seed in range(SEEDS):
            for kind in ("pixelcnn", "gpt", "rar", "maskgit"):
                self.prior("vqgan", kind, seed)

    def distances(self) -> None:
        first, second = self.real()
        self.table.get(f"floor {len(first.features)}", lambda: second.distance(first))
        for seed in range(SEEDS):
            for tokenizer in ("vqvae", "vqgan"):
                self.table.get(f"decoded {tokenizer}", lambda tokenizer=tokenizer: self.decoded(tokenizer))
                for kind in ("pixelcnn", "gpt"):
                    made = self.prior(tokenizer, kind, seed)
                    name = f"distance {tokenizer} {kind} {seed}"
                    self.table.get(name, lambda made=made, tokenizer=tokenizer: self.distance(made, tokenizer))
        chain = Chain(self.prior("vqvae2", kind, 0) for kind in ("top", "bottom"))
        others = {"vqvae2": chain, "rqvae": self.prior("rqvae", "rq", 0), "var": self.prior("var", "var", 0)}
        for tokenizer, one in others.items():
            self.table.get(f"decoded {tokenizer}", lambda tokenizer=tokenizer: self.decoded(tokenizer))
            name = f"distance {tokenizer}"
            self.table.get(name, lambda one=one, tokenizer=tokenizer: self.distance(one, tokenizer))

    def orders(self) -> None:
        made = self.prior("vqgan", "maskgit", 0)
        for steps in (4, 8, 16, 32, 64):
            for order in ("confidence", "halton"):
                asked = {"steps": steps, "order": order}
                name = f"distance vqgan maskgit {order} {steps}"
                self.table.get(name, lambda asked=asked: self.distance(made, "vqgan", **asked))

    def kinds(self) -> None:
        top, bottom = (self.prior("vqvae2", kind, 0) for kind in ("top", "bottom"))
        shares = np.array([top.layout.length, bottom.layout.length])
        bits = [self.table.found[f"vqvae2 {kind} 0"]["bits"] for kind in ("top", "bottom")]
        self.table.get("vqvae2 chain 0", lambda: float(np.average(bits, weights=shares)))
        self.prior("rqvae", "rq", 0)
        self.prior("var", "var", 0)


PARTS = {"bits": Study.bits, "kinds": Study.kinds, "distance": Study.distances, "orders": Study.orders}


def main(photos: str, test: str, out: str, *given: str) -> None:
    parts = [one for one in given if "=" not in one]
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"no part {min(unknown)}; there are {', '.join(PARTS)}")
    Path(out).mkdir(parents=True, exist_ok=True)
    study = Study(photos, test, Path(out), [one for one in given if "=" in one])
    for part in parts or PARTS:
        PARTS[part](study)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
