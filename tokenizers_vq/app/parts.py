"""Parts that the tabs share: a field for a picture's file, errors as one line, what a prior is told."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from torch import Tensor

from tokenizers_vq.app import drawing, pictures
from tokenizers_vq.app.drawing import Wish
from tokenizers_vq.app.models import Models

NOT_SAID = "(not said)"
LIMIT = "compute"
"""events of this name are dealt with one after the other: each takes all cores"""


def picture_field(label: str, elem_id: str) -> gr.Image:
    """An empty field for a picture's file: dropped, chosen or pasted.

    It hands on the file itself, so that its size is looked at before it is decoded.
    """
    field = gr.Image(label=label, elem_id=elem_id, type="filepath", sources=["upload", "clipboard"], height=280)
    # Not in a subclass: gradio would write a stub of it beside this file.
    field.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return field


def one_line(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` whose errors that a person can put right are shown in the page, as one line."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            raise gr.Error(
                " ".join(str(error).split()), title="That did not work", duration=30, print_exception=False
            ) from None

    return call


class Told:
    """What priors are told: a field for each condition of each, of which those of the chosen prior are seen.

    `unsaid`: a class need not be told at first, where a prior has learnt to do without.
    """

    def __init__(self, models: Models, priors: Sequence[str], unsaid: bool = False) -> None:
        self.models, self.fields = models, []
        self._of: list[tuple[str, str]] = []
        for name in priors:
            for part, condition in models.priors[name].condition.parts.items():
                self.fields.append(_field(part, condition, unsaid, visible=name == priors[0]))
                self._of.append((name, part))

    def given(self, prior: str, values: Sequence[str | None]) -> dict[str, str | None]:
        """The values of one prior's fields by the names of its conditions."""
        return {part: value for (name, part), value in zip(self._of, values, strict=True) if name == prior}

    def show(self, prior: str) -> list[Any]:
        """Which fields are seen now that a prior is chosen."""
        return [gr.update(visible=name == prior) for name, _ in self._of]


def _field(name: str, condition: Any, unsaid: bool, visible: bool) -> Any:
    known = drawing.choices(condition)
    if known is None:
        return gr.Textbox(label=name, lines=1, visible=visible, placeholder="what the picture should show")
    choices = [*([(NOT_SAID, "")] if condition.guidable else []), *((one, one) for one in known)]
    first = 0 if unsaid else -len(known)
    return gr.Dropdown(choices, value=choices[first][1], label=name, visible=visible)


class Fields:
    """Fields of a `Wish`, in its order, most of them folded away."""

    def __init__(self, guidance: float) -> None:
        self.all: list[Any] = [
            gr.Slider(1, drawing.MOST, value=4, step=1, label="pictures", buttons=[]),
            gr.Number(0, label="seed: the same one draws the same pictures", precision=0, min_width=120),
        ]
        with gr.Accordion("more settings", open=False):
            self.all += [
                gr.Slider(0, 2, value=1, step=0.05, label="temperature: lower takes likelier codes", buttons=[]),
                gr.Slider(
                    1,
                    10,
                    value=guidance,
                    step=0.5,
                    label="guidance: higher heeds what it is told more, 1 is off",
                    buttons=[],
                ),
                gr.Slider(0.05, 1, value=1, step=0.05, label="top-p: lower leaves unlikely codes out", buttons=[]),
            ]
        self.guidance = self.all[3]

    @staticmethod
    def wish(values: Sequence[Any]) -> Wish:
        """What they say."""
        count, seed, temperature, guidance, top_p = values
        return Wish(int(count or 0), int(seed or 0), temperature, guidance, top_p)


def small_gallery(label: str, elem_id: str) -> gr.Gallery:
    """Pictures that a prior drew."""
    return gr.Gallery(
        label=label,
        columns=4,
        height="auto",
        format="png",
        interactive=False,
        buttons=["download"],
        elem_id=elem_id,
        elem_classes="shown",
    )


def numbered(drawn: Sequence[Tensor]) -> list[tuple[Any, str]]:
    """Images `(C, H, W)` in [-1, 1] as a gallery takes them."""
    return [(pictures.shown(image, 256), str(number)) for number, image in enumerate(drawn, 1)]
