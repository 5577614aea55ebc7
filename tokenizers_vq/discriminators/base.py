"""The contract of a discriminator, what it gives, and how it is asked without being changed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from tokenizers_vq.batch import Batch
from tokenizers_vq.config import Config, ConfigError

FIELD = ("adversary", "discriminator")
"""of a recipe: where a discriminator that says what is wrong with it takes itself to stand"""


class Judgement(NamedTuple):
    """A discriminator's opinion of one batch."""

    logits: list[Tensor]
    """one tensor a scale or head, `(B, ...)`; larger is more real"""
    features: list[Tensor]
    """activations, shallow first, for feature matching"""
    losses: dict[str, Tensor]
    """scalars that the discriminator's own loss adds at weight 1, by their names in the log"""


class Mixing(NamedTuple):
    """By what an image's logits depend on the others of its batch, where no penalty on slopes can stand beside it."""

    path: tuple[str, ...]
    """of the field in the discriminator's config"""
    by: str
    """as a message names it"""
    remedy: str
    """what to do; {path} stands for the path in the recipe"""


class Discriminator(nn.Module):
    """Images `(B, C, H, W)` in [-1, 1] -> `Judgement`. Its config builds it: `config.build(channels, image_size)`.

    State lives in buffers. In train mode a forward may update them; `judge` asks without doing so.
    """

    def __init__(self, config: Config, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config: Any = config
        """of the union on `kind`: with channels and size all that describes it"""
        self.channels = channels
        """C of the images"""
        self.image_size = (int(image_size[0]), int(image_size[1]))
        """height and width that it is made for"""
        self.feature_width: int
        """channels of the last of its features: it sets them"""

    def check(self, batch: Batch) -> None:
        """Raises `ValueError`, one line, for what it cannot take: sizes, labels, captions. Asked before step 0.

        Unless a discriminator says otherwise, it takes the channels and the size that it was built for.
        """
        check_channels(self, batch)
        if tuple(batch.images.shape[-2:]) != self.image_size:
            built, got = ("x".join(map(str, size)) for size in (self.image_size, batch.images.shape[-2:]))
            raise ValueError(f"this {self.config.kind} was built for images of {built}, got {got}: build it for these")

    @property
    def conditional(self) -> bool:
        """Whether its logits depend on more than the image: on a label, a caption, codes, another image.

        One that overrides `inputs` for something else says so here.
        """
        return type(self).inputs is not Discriminator.inputs

    @property
    def mixing(self) -> Mixing | None:
        """What mixes the images of a batch: a norm that its config has, unless it says otherwise.

        A minibatch standard deviation is none: it was published with such penalties (arXiv 1710.10196, 1912.04958).
        """
        norm = getattr(self.config, "norm", None)
        if norm not in ("batch", "virtual"):
            return None
        return Mixing(("norm",), f"the norm '{norm}'", "give {path}=none or another norm")

    def trained(self) -> list[nn.Parameter]:
        """Its parameters that an optimizer moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises `ValueError`, one line, for a tokenizer beside which it cannot stand. Asked before step 0."""

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """What `forward` takes for `images`, real or reconstructed, of one micro-batch's `losses.record.Record`.

        A discriminator that also looks at labels, captions, features or the image itself takes them from `record`.
        The images stand first; a wrapper puts what it adds right behind them, before what the inner one asks for.
        """
        return (images,)

    @abstractmethod
    def forward(self, *inputs: Any) -> Judgement:
        """Judge one batch, given as `inputs` gives it."""

    def after_step(self) -> None:
        """Called after its optimizer's step."""

    def figures(self) -> dict[str, Tensor]:
        """Scalars of its state by their names in the log, where it has some that a person wants to see."""
        return {}


class Embedded(NamedTuple):
    """What a discriminator sees in one batch, before it decides."""

    embeddings: list[Tensor]
    """one for each of the logits, `(B, D)`, or `(B, D, h, w)` where these are a map"""
    features: list[Tensor]
    """as a judgement has them"""


class Split(Discriminator):
    """A discriminator of images alone, in two halves: what it sees, and a last layer that makes logits of it.

    A wrapper such as `bottleneck` may come between. It sets `embedding_widths` to the D of its embeddings.
    """

    embedding_widths: list[int]

    @abstractmethod
    def embed(self, images: Tensor) -> Embedded:
        """Images `(B, C, H, W)` in [-1, 1] -> all but the last layer."""

    @abstractmethod
    def decide(self, embeddings: list[Tensor]) -> list[Tensor]:
        """The last layer: the logits of what `embed` found, each image by itself."""

    def forward(self, images: Tensor) -> Judgement:
        """Images `(B, C, H, W)` in [-1, 1]."""
        embeddings, features = self.embed(images)
        return Judgement(self.decide(embeddings), features, {})


class Wrapper(Discriminator):
    """A discriminator around another one, whose config it holds as `config.discriminator`.

    As it stands it passes everything on; a wrapper overrides what it changes. One that shows the inner discriminator
    other images, such as pairs, builds it for their channels and checks them.
    """

    inner: Discriminator

    def __init__(self, config: Config, channels: int, image_size: tuple[int, int]) -> None:
        super().__init__(config, channels, image_size)
        with inside("discriminator"):
            self.inner = self.config.discriminator.build(channels, image_size)
        self.feature_width = self.inner.feature_width

    def check(self, batch: Batch) -> None:
        """What the inner discriminator cannot take."""
        with inside("discriminator"):
            self.inner.check(batch)

    @property
    def conditional(self) -> bool:
        """Whether the inner one's do, or it has inputs of its own."""
        return self.inner.conditional or type(self).inputs is not Wrapper.inputs

    @property
    def mixing(self) -> Mixing | None:
        """What mixes in the inner one."""
        found = self.inner.mixing
        return found and found._replace(path=("discriminator", *found.path))

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Beside which the inner discriminator cannot stand."""
        with inside("discriminator"):
            self.inner.check_tokenizer(tokenizer)

    def inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """Those of the inner discriminator."""
        return self.inner_inputs(record, images)

    def inner_inputs(self, record: Any, images: Tensor) -> tuple[Any, ...]:
        """What the inner discriminator asks for; what it refuses names its own place, as in `check`."""
        with inside("discriminator"):
            return self.inner.inputs(record, images)

    def forward(self, *inputs: Any) -> Judgement:
        """The inner discriminator's judgement."""
        return self.inner(*inputs)

    def after_step(self) -> None:
        """The inner one's."""
        self.inner.after_step()

    def figures(self) -> dict[str, Tensor]:
        """The inner one's."""
        return self.inner.figures()


@contextmanager
def inside(*path: str) -> Iterator[None]:
    """What a discriminator refuses stands in an outer one's config, at `path`, and so do the fields that it names."""
    root = ".".join(FIELD)
    try:
        yield
    except ConfigError as error:
        if error.path[:2] != FIELD:
            raise
        raise ConfigError((*FIELD, *path, *error.path[2:]), error.problem) from None
    except ValueError as error:
        if not str(error).startswith("adversary."):
            raise ConfigError((*FIELD, *path), str(error)) from None
        if not str(error).startswith(root):
            raise
        raise ValueError(".".join((root, *path)) + str(error).removeprefix(root)) from None


def check_channels(discriminator: Discriminator, batch: Batch) -> None:
    """Raises `ValueError` for images of other channels than the discriminator was built for."""
    if batch.images.shape[1] != discriminator.channels:
        raise ValueError(
            f"this {discriminator.config.kind} was built for images of {discriminator.channels} channels, "
            f"got {batch.images.shape[1]}: build it for these"
        )


def judge(discriminator: Discriminator, record: Any, images: Tensor, *, frozen: bool) -> Judgement:
    """The discriminator's judgement of `images`, in its present mode, leaving its buffers as they are.

    `frozen` leaves its parameters out of the graph too: older torch caches the casts that autocast makes of them under
    `no_grad`, and the discriminator's own step would meet these and get no gradient.
    """
    return ask(discriminator, discriminator.inputs(record, images), frozen=frozen)


def ask(discriminator: Discriminator, inputs: tuple[Any, ...], *, frozen: bool) -> Judgement:
    """`judge` of given inputs."""
    state = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    if frozen:
        state |= {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return functional_call(discriminator, state, inputs)
