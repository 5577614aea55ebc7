"""What a tokenizer's recipe takes, told before step 0."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tokenizers_vq.batch import Batch
from tokenizers_vq.codes import Quantized
from tokenizers_vq.devices import without_memory
from tokenizers_vq.losses.record import Record
from tokenizers_vq.training import estimate, modes
from tokenizers_vq.training.estimate import Cost, Estimate, Measured
from tokenizers_vq.training.recipe import RECIPES, Recipe, load_recipe, read_recipe
from tokenizers_vq.training.step import trunk_blocks


def plan(
    recipe: str | Path | Recipe,
    *overrides: str,
    gpus: int = 1,
    memory: float = 80.0,
    utilisation: float = 0.35,
) -> Estimate:
    """Parameters, memory and days of a recipe on `gpus` cards of `memory` GB, at a share of their peak.

    Nothing is trained and no data are read. Raises `ValueError` for recipes that cannot be, and where the batch does
    not part into so many cards.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, [*_somewhere(recipe, overrides), *overrides])
    micro = estimate.micro_batch(recipe.batch_size, gpus, recipe.accumulate)
    planned = _Planned(recipe)
    image, besides, flops = estimate.by_image(planned.step)
    adversary = [] if planned.discriminator is None else [planned.discriminator]
    state = estimate.state_of(
        [planned.tokenizer, *adversary], planned.tokenizer if recipe.ema else None, recipe.optimizer.kind
    )
    counted = {"tokenizer": planned.tokenizer, "discriminator": planned.discriminator}
    return Estimate(
        parameters={
            name: sum(one.numel() for one in part.parameters()) for name, part in counted.items() if part is not None
        },
        state=state,
        image=image,
        besides=besides,
        flops=flops,
        steps=recipe.steps,
        batch=recipe.batch_size,
        micro=micro,
        precision=recipe.precision,
        gpus=gpus,
        memory=memory * 1e9,
        fsdp=False,  # which shards priors
        utilisation=utilisation,
        left_out=tuple(planned.left_out.values()),
    )


def _somewhere(recipe: str | Path, overrides: Sequence[str]) -> list[str]:
    """Of a shipped recipe without data, a place for them: nothing is read there."""
    path = RECIPES / f"{recipe}.yaml"
    given = any(one.partition("=")[0] in ("data", "data.path") for one in overrides)
    return [] if given or not path.is_file() or "data" in read_recipe(path, RECIPES) else ["data=PATH"]


class _Planned:
    """The parts of a recipe as fake tensors."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.mode = recipe, FakeTensorMode(allow_non_fake_inputs=True)
        self.left_out: dict[str, str] = {}
        with without_memory():
            tokenizer = recipe.model.build()
        self.tokenizer = modes.freeze(estimate.faked(tokenizer.train(), self.mode), recipe.train)  # type: ignore[arg-type]
        self.discriminator: Any = None
        if recipe.adversary is not None:
            with without_memory():
                made = self._tried("discriminator", self._built)
            self.discriminator = None if made is None else estimate.faked(made.train(), self.mode)
        with without_memory():
            terms = [self._tried(config.kind, partial(config.build, self.tokenizer)) for config in recipe.losses]
        self.terms: list[Any] = [estimate.faked(term, self.mode) for term in terms if term is not None]

    def _built(self) -> nn.Module:
        assert self.recipe.adversary is not None
        config = self.recipe.model
        return self.recipe.adversary.discriminator.build(channels=config.channels, image_size=config.size)

    def _tried(self, name: str, call: Any) -> Any:
        """What a call gives; None where it cannot be counted: its weights are absent, or it asks for values."""
        try:
            return call()
        except Exception as error:  # of any part, whatever it looks at
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            self.left_out.setdefault(name, f"{name} ({reason})")
            return None

    def step(self, images: int) -> Measured:
        """A step of so many images, as `TokenizerTask` takes it."""
        tokenizer, config = self.tokenizer, self.recipe.model
        half = self.recipe.precision == "bf16"
        with self.mode, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            pixels = torch.empty(images, config.channels, *config.size)
            found: dict[str, Any] = {}

            def forward() -> Tensor:
                found["features"], found["quantized"] = self._quantized(pixels)
                found["output"] = tokenizer.decoder(found["quantized"].features)
                return found["output"]

            blocks = trunk_blocks(tokenizer) if self.recipe.gradient_checkpointing else []
            own = estimate.count(forward, [tokenizer], blocks)
            record = Record(
                Batch(pixels, labels=torch.zeros(images, dtype=torch.int64)),
                found["output"],
                features=found["features"],
                quantized=found["quantized"],
                tokenizer=tokenizer,
                discriminator=self.discriminator,
            )
            terms = [self._tried(term.name, partial(_term_cost, term, record)) for term in self.terms]
            faced, judged = self._adversary(record)
        passing = [one for one in (*terms, faced) if one is not None]
        most = max((one.peak for one in passing), default=0)
        flops = own.flops + judged.flops + sum(one.flops for one in passing)
        return Measured(max(own.kept + max(most, 2 * own.largest), judged.peak) + 2 * pixels.nbytes, flops)

    def _adversary(self, record: Record) -> tuple[Cost, Cost]:
        """What the tokenizer's adversarial loss takes, and the discriminator's own."""
        if self.discriminator is None:
            return Cost(), Cost()
        assert self.recipe.adversary is not None
        objective, discriminator = self.recipe.adversary.objective, self.discriminator

        def own() -> Tensor:
            sides = (record.images, record.reconstructions.detach())
            real, fake = (discriminator(*discriminator.inputs(record, side)) for side in sides)
            return objective.discriminator(real, fake)

        faced = self._tried("generator", lambda: estimate.count(lambda: objective.generator(record), [discriminator]))
        judged = self._tried("discriminator", lambda: estimate.count(own, [discriminator]))
        return faced or Cost(), judged or Cost()

    def _quantized(self, pixels: Tensor) -> tuple[Any, Quantized]:
        """Features, and vectors of the quantizer's width in their place: its search keeps nothing of its own."""
        tokenizer: Any = self.tokenizer
        features = tokenizer.encoder(pixels)
        if len(tokenizer.quantizers) == 1:
            return features, _stand_in(tokenizer.quantizer, features)
        latents: list[Tensor] = []
        vectors: list[Tensor] = []
        for head, quantizer, level in zip(tokenizer.heads, tokenizer.quantizers, features, strict=True):
            latents.append(head(level, vectors))
            vectors.append(_stand_in(quantizer, latents[-1]).features)
        return tuple(latents), Quantized(tuple(vectors), None, {}, {})


def _term_cost(term: Any, record: Record) -> Cost:
    return estimate.count(lambda: term(record), [term])


def _stand_in(quantizer: Any, features: Tensor) -> Quantized:
    """Vectors `(B, D, *grid)` with the features' gradient; of a quantizer that runs without values, its own."""
    try:
        return quantizer(features)
    except Exception:  # it asks for values: which codes are dead, how many are used
        if features.shape[1] == quantizer.dim:
            vectors = features * 1
        else:
            vectors = features.sum(dim=1, keepdim=True).repeat_interleave(quantizer.dim, dim=1)
        codes = torch.zeros(features.shape[0], *features.shape[2:], dtype=torch.int64)
        return Quantized(vectors, codes, {}, {})
