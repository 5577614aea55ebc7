"""The best of several samples, by a judge: a classifier, CLIP, or the discriminator that the tokenizer learnt from.

Rejection sampling by a classifier is VQ-VAE-2's (arXiv 1906.00446, section 3.4), by CLIP DALL-E's (arXiv 2102.12092,
section 2.6).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from prior.conditions import ClassCondition, Condition, TextCondition, TextEncoderCondition
from prior.decoding import decode
from prior.model import Prior
from prior.sampling import Sampler
from tokenizers_vq.networks.backbones import Backbone, three_channels
from tokenizers_vq.tokenizer import Tokenizer
from tokenizers_vq.training.discriminators import trained_discriminator

Judge = Callable[[Tensor, Any], Tensor]
"""`judge(images, told)`: images `(n, C, H, W)` in [-1, 1] and what they were told -> scores `(n,)`, larger is better"""


class Best(NamedTuple):
    """What choosing gives."""

    images: Tensor
    """float32 `(n, C, H, W)` in [-1, 1], the chosen ones"""
    codes: Tensor
    """int64 `(n, N)`"""
    scores: Tensor
    """float32 `(n, of)`, of all candidates"""

    def __str__(self) -> str:
        n, of = self.scores.shape
        best = float(self.scores.amax(dim=1).mean())
        return (
            f"kept {n} of {n * of} candidates (acceptance {100 / of:.1f} %): mean score {best:.3f}, "
            f"of all {float(self.scores.mean()):.3f}"
        )


def best_of(
    prior: Prior,
    tokenizer: Tokenizer,
    judge: Judge,
    n: int,
    of: int,
    condition: Any = None,
    sampler: Sampler | Mapping[str, Any] | None = None,
    *,
    first: int = 0,
    **settings: Any,
) -> Best:
    """Draw `of` candidates for each of `n` samples and keep the one that the judge likes best, the first of equals.

    `condition`, `sampler`, `settings`: as of `Prior.sample`, a condition for all samples or one for each; candidate j
    of sample i is the prior's sample `(first + i) of + j`. Raises `ValueError` as that and the judge do.
    """
    if of < 1:
        raise ValueError(f"best of {of}: give 1 candidate or more")
    told = condition
    if isinstance(condition, (list, tuple, Tensor)) and len(condition) == n:
        told = [one for one in condition for _ in range(of)]
    codes = prior.sample(n * of, told, sampler, first=first * of, **settings)
    images = decode(tokenizer, prior, codes)
    with torch.inference_mode():
        scores = judge(images, told).float().cpu().view(n, of)
    if not bool(scores.isfinite().all()):
        raise ValueError("the judge gave scores that are not numbers: it takes images in [-1, 1] of its own kind")
    chosen = torch.arange(n) * of + scores.argmax(dim=1)
    return Best(images[chosen], codes[chosen.to(codes.device)], scores)


def classifier(name: str, prior: Prior, classes: Sequence[int] | None = None) -> Judge:
    """The log-probability of the asked class, by a classifier of timm: a name, or `local-dir:FOLDER` of its weights.

    `classes`: the classifier's number of each of the prior's classes; unset where both know as many. Raises
    `ValueError` for a prior that is told no class, and for classes that do not fit.
    """
    called, condition = _part(prior, ClassCondition)
    if not isinstance(condition, ClassCondition):
        raise ValueError("a classifier judges samples of a class, and this prior takes none: use clip or discriminator")
    backbone = Backbone(name)
    known, asked = int(backbone.model.num_classes), condition.num_classes
    numbers = list(range(asked)) if classes is None else list(classes)
    if (classes is None and known != asked) or len(numbers) != asked or not all(0 <= one < known for one in numbers):
        raise ValueError(
            f"{name} knows {known} classes, the prior {asked}: give classes, the classifier's number "
            f"(0 to {known - 1}) of each of the prior's"
        )

    def judge(images: Tensor, told: Any) -> Tensor:
        labels = condition.resolve(_values(told, called), len(images))[0].cpu()
        if bool((labels == asked).any()):
            raise ValueError("a classifier judges samples of a class: give one")
        size = tuple(backbone.model.pretrained_cfg["input_size"][-2:])
        logits = backbone.logits(_resized(three_channels(images, None, name), size))
        return logits.log_softmax(dim=1).gather(1, torch.tensor(numbers)[labels][:, None])[:, 0]

    return judge


def clip(folder: str | Path, prior: Prior, template: str = "a photo of a {}") -> Judge:
    """The cosine between image and text, by a CLIP that transformers saved into a local folder.

    The text is the prompt, or `template` of the class's name. Raises `FileNotFoundError` where no CLIP lies there,
    `ValueError` for samples that were told neither.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no folder {folder}: give one that transformers saved a CLIP into")
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        made = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"{folder} holds no CLIP of transformers: {' '.join(str(error).split())[:200]}"
        ) from None
    side = model.config.vision_config.image_size
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (made.image_mean, made.image_std))

    def judge(images: Tensor, told: Any) -> Tensor:
        texts = [template.format(one[1]) if one[0] else one[1] for one in _named(prior, told, len(images))]
        pixels = (_resized(three_channels(images, None, "clip"), (side, side)) + 1) / 2
        longest = model.config.text_config.max_position_embeddings
        tokens = words(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        out = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=(pixels - mean) / std
        )
        return F.cosine_similarity(out.image_embeds, out.text_embeds, dim=1)

    return judge


def discriminator(run: str | Path) -> Judge:
    """The mean logit of the discriminator that a run has trained, or that lies beside a saved tokenizer; larger is more
    real.

    Raises `FileNotFoundError` where there is none, `ValueError` for one that is asked more than the image.
    """
    found, why = trained_discriminator(str(run))
    if found is None:
        raise FileNotFoundError(f"no discriminator of {run}: {why}; give a run that trained with one")
    critic = found
    if critic.conditional:
        raise ValueError(
            f"the {critic.config.kind} discriminator of {run} judges more than the image: take another judge"
        )

    def judge(images: Tensor, told: Any) -> Tensor:
        logits = critic(images).logits
        return torch.stack([part.flatten(1).mean(dim=1) for part in logits]).mean(dim=0)

    return judge


def open_judge(name: str, prior: Prior, tokenizer: str | None, classes: Sequence[int] | None = None) -> Judge:
    """A judge by its name: `classifier:NAME`, `clip:FOLDER`, `discriminator` of the tokenizer, `discriminator:RUN`.

    Raises `ValueError` for another name, and what these raise.
    """
    kind, _, what = name.partition(":")
    if kind == "classifier" and what:
        return classifier(what, prior, classes)
    if kind == "clip" and what:
        return clip(what, prior)
    if kind == "discriminator" and (what or tokenizer):
        return discriminator(what or str(tokenizer))
    raise ValueError(
        f"no judge '{name}': give classifier:NAME of timm, clip:FOLDER, discriminator or discriminator:RUN"
    )


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def _part(prior: Prior, *kinds: type[Condition]) -> tuple[str, Condition | None]:
    """What the prior is told of the first of these kinds that it is told, and its name; None where it is told none."""
    found = [(name, part) for kind in kinds for name, part in prior.condition.parts.items() if isinstance(part, kind)]
    return found[0] if found else ("", None)


def _values(told: Any, name: str) -> Any:
    """Of what samples were told, what is called `name`."""
    if isinstance(told, Mapping):
        return told.get(name)
    several = isinstance(told, (list, tuple)) and any(isinstance(one, Mapping) for one in told)
    return [one.get(name) for one in told] if several else told


def _named(prior: Prior, told: Any, count: int) -> list[tuple[bool, str]]:
    """For each sample whether it is a class, and the class's name or the prompt."""
    called, condition = _part(prior, TextCondition, TextEncoderCondition, ClassCondition)
    told = _values(told, called)
    if not isinstance(condition, ClassCondition):
        values = [told] * count if told is None or isinstance(told, str) else list(told)
        texts = [one for one in values if isinstance(one, str) and one]
        if len(texts) < len(values):
            raise ValueError("clip judges samples of a text or a class: give one")
        return [(False, one) for one in texts]
    labels, names = condition.resolve(told, count)[0].tolist(), condition.label_names
    if not names or condition.num_classes in labels:
        raise ValueError("clip judges samples of a text or of a class with a name: give one")
    return [(True, str(names[label])) for label in labels]
