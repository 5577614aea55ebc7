"""`Prior`: the distribution of an image's codes, to train, to measure and to sample from; its config, its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior.conditions import ConditionConfig, NoneConfig
from prior.networks import NetworkConfig
from prior.sampling import Sampler, draw, guide, uniforms
from prior.sequences import LayoutConfig, Sequence
from tokenizers_vq import folders
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.config import Config, nearest, parse, read_yaml
from tokenizers_vq.folders import CONFIG

HERE = Path(__file__).parent


class PriorConfig(Config):
    """A prior, and the tokenizer whose codes it models."""

    kind: Literal["autoregressive"] = "autoregressive"
    network: NetworkConfig
    """the transformer"""
    condition: ConditionConfig = NoneConfig()
    """what it is told beforehand"""
    layout: LayoutConfig
    """layout of the codes"""
    tokenizer: str | None = None
    """folder or name of the tokenizer"""
    fingerprint: str | None = None
    """fingerprint of the tokenizer"""
    label_names: tuple[str, ...] | None = None
    """names of the classes"""


class Prior(nn.Module):
    """Autoregressive prior over the flat row of codes."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.sequence = Sequence(config.layout.build())
        self.condition = config.condition.build(config.network.dim)
        self.network = config.network.build(self.sequence)

    @property
    def layout(self) -> CodeLayout:
        """Layout of the codes that this prior models."""
        return self.sequence.layout

    @property
    def exact(self) -> bool:
        """Whether `log_likelihood` is exact (otherwise a bound)."""
        return self.network.exact

    def forward(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """int64 `(B, N)` -> logits `(B, N, K)`: place i predicts code i from those before it; impossible codes -inf.

        `condition`: labels int64 `(B,)`, one label, or None (no condition). Raises `ValueError` for tokens of another
        length or range, or a label out of range.
        """
        self.sequence.check(tokens)
        return self.sequence.mask(self.network(tokens[:, :-1], self.condition(condition, tokens.shape[0])))

    def log_likelihood(self, tokens: Tensor, condition: Any = None) -> Tensor:
        """int64 `(B, N)` -> `(B,)` nats, float32; as `forward`, in eval mode free of dropout."""
        logits = self(tokens, condition).float()
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape).sum(dim=1)

    def sample(
        self, n: int, condition: Any = None, sampler: Sampler | None = None, known: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """Draw codes int64 `(n, N)`, sample i from (seed, `first` + i).

        `known`: int64 `(N,)` or `(n, N)`, codes to keep, -1 where unknown; a code is drawn given those before it alone.
        Raises `ValueError` for a guided prior without condition, or codes and labels as `forward` does.
        """
        sampler = sampler or Sampler()
        length, device = self.sequence.length, self.sequence.positions.device
        if n < 1:
            raise ValueError(f"cannot draw {n} samples; ask for 1 or more")
        if known is None:
            known = torch.full((n, length), -1, device=device)
        else:
            known = known.to(device).expand(n, -1) if known.ndim == 1 else known.to(device)
            if known.shape[0] != n:
                raise ValueError(f"known holds {known.shape[0]} rows, {n} samples are asked for")
            self.sequence.check(known, unknown=True)
        guided = sampler.guidance != 1
        if guided and (condition is None or not self.condition.guidable):
            raise ValueError(f"guidance {sampler.guidance} needs a class; pass one, or guidance 1")
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                codes = self._sample(known, condition, sampler, guided, first)
        finally:
            self.train(was_training)
        return codes.clone()  # outside inference mode, so that gradients may be taken through its embedding

    def _sample(self, known: Tensor, condition: Any, sampler: Sampler, guided: bool, first: int) -> Tensor:
        n, length = known.shape
        prefix = self.condition(condition, n)
        if guided:
            prefix = torch.cat((prefix, self.condition.null(n)))
        rows = prefix.shape[0]
        given = known >= 0
        start = int(given.all(dim=0).long().cumprod(0).sum())
        codes = known.clone()
        if start == length:
            return codes
        cache = self.network.cache(rows, prefix.shape[1])
        if start:
            logits = self.network(codes[:, :start].repeat(rows // n, 1), prefix, cache)[:, -1]
        decoder = self.network.decoder(cache, prefix.shape[1])
        if not start:
            for vector in prefix.unbind(dim=1):
                logits = decoder.feed(vector)
        noise = uniforms(n, length, sampler.seed, first).to(known.device)
        partly = given.any(dim=0).tolist()
        for place in range(start, length):
            if place > start:
                logits = decoder.step(codes[:, place - 1].repeat(rows // n))
            scores = self.sequence.mask(logits[:, None], place)[:, 0]
            drawn = draw(guide(scores, sampler.guidance) if guided else scores, sampler, noise[:, place])
            codes[:, place] = torch.where(given[:, place], codes[:, place], drawn) if partly[place] else drawn
        return codes

    def save(self, folder: Path | str) -> Path:
        """Write `config.json` and `model.safetensors` into `folder`, each replaced in one move."""
        folders.save(Path(folder), self.config.to_dict(), self.state_dict())
        return Path(folder)


def list_models(kind: str = "preset") -> list[str]:
    """Sorted names: of `preset`s that `create` takes, or `shipped` priors that `load` takes.

    Raises `ValueError` for another kind.
    """
    if kind == "preset":
        return sorted(path.stem for path in (HERE / "presets").glob("*.yaml"))
    if kind == "shipped":
        return sorted(path.parent.name for path in (HERE / "weights").glob(f"*/{CONFIG}"))
    raise ValueError(f"no kind of model '{kind}'{nearest(kind, ('preset', 'shipped'))}")


def create(
    preset: str, layout: CodeLayout, condition: ConditionConfig | dict[str, Any] | None = None, **fields: Any
) -> Prior:
    """An untrained prior of a preset's size for a layout. `fields`: tokenizer, fingerprint, label_names.

    Raises `ValueError` for an unknown preset, with the nearest name.
    """
    if preset not in list_models():
        raise ValueError(f"no preset '{preset}' of a prior{nearest(preset, list_models())}")
    data = read_yaml(HERE / "presets" / f"{preset}.yaml")
    if condition is not None:
        data["condition"] = condition
    return Prior(parse(PriorConfig, {**data, "layout": LayoutConfig.of(layout), **fields}, f"preset {preset}"))


def load(source: Path | str) -> Prior:
    """A prior from a folder (of a run: its `model/`), the name of a shipped one, or a Hub repository `owner/name`.

    float32, in eval mode. Raises `FileNotFoundError` where nothing is there, `ValueError` where a file is damaged or
    its tensors do not fit the config.
    """
    folder = _find(str(source))
    prior = Prior(parse(PriorConfig, folders.read_config(folder), str(folder / CONFIG)))
    folders.load_weights(prior, folder)
    return prior.eval()


def _find(source: str) -> Path:
    for folder in (Path(source) / "model", Path(source)):
        if (folder / CONFIG).is_file():
            return folder
    if Path(source).is_dir():
        return Path(source)
    if source in list_models("shipped"):
        return HERE / "weights" / source
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return folders.download(source)
    raise FileNotFoundError(
        f"no prior at '{source}': no such folder or shipped prior{nearest(source, list_models('shipped'))}"
    )
