"""The third tab: what is painted over in a picture, drawn anew by a prior."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from tokenizers_vq.app import drawing, pictures
from tokenizers_vq.app.models import Models
from tokenizers_vq.app.parts import LIMIT, Fields, Told, numbered, one_line, picture_field, small_gallery
from tokenizers_vq.app.sample_tab import NO_PRIOR

_BRUSH = 48
_NONE_FILLS = (
    "No prior that is open here fills in: it takes one that models all codes of a picture, each with a place in it."
)


def fill_tab(models: Models) -> None:
    """Put the tab's components into the page that is being built."""
    names = [name for name, opened in models.priors.items() if drawing.fills(opened)]
    if not names:
        gr.Markdown(_NONE_FILLS if models.priors else NO_PRIOR)
        return
    gr.Markdown("The codes under what you paint are forgotten, and a prior draws new ones from those that are left.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = picture_field("1. Drop a picture", "fill-picture")
            prior = gr.Dropdown(names, value=names[0], label="prior", visible=len(names) > 1)
            told = Told(models, names, unsaid=True)
            fields = Fields(1.0)
            notes = gr.Markdown(_notes(models, names[0]))
        with gr.Column(scale=2, min_width=280):
            editor = gr.ImageEditor(
                label="2. Paint over what is to be drawn anew",
                type="numpy",
                format="png",
                sources=[],
                transforms=[],
                layers=False,
                brush=gr.Brush(default_size=_BRUSH, colors=["#ff2d75"], color_mode="fixed"),
                canvas_size=(pictures.SHOWN, pictures.SHOWN),
                buttons=[],
                elem_id="fill-editor",
            )
            button = gr.Button("3. Fill it in", variant="primary", elem_id="fill-draw")
            gallery = small_gallery("filled in", "filled")

    def prepare(path: str | None, name: str) -> Any:
        if path is None:
            return None
        image = drawing.prepare(path, models.priors[name])
        return {"background": pictures.shown(image[0]), "layers": [], "composite": None}

    def fill(path: str | None, painted: Any, name: str, *values: Any) -> list[Any]:
        split = len(told.fields)
        given, wish = told.given(name, values[:split]), fields.wish(values[split:])
        return numbered(drawing.fill(models.priors[name], path, _mask(painted), given, wish))

    def choose(path: str | None, name: str) -> list[Any]:
        return [prepare(path, name), _notes(models, name), *told.show(name)]

    private: dict[str, Any] = {"api_visibility": "private"}
    picture.change(one_line(prepare), [picture, prior], editor, **private)
    prior.change(one_line(choose), [picture, prior], [editor, notes, *told.fields], **private)
    inputs = [picture, editor, prior, *told.fields, *fields.all]
    button.click(one_line(fill), inputs, gallery, concurrency_id=LIMIT, **private)


def _mask(painted: Any) -> np.ndarray | None:
    """bool `(h, w)`: where any layer of the editor is painted; None where there is none."""
    layers = [layer for layer in (painted or {}).get("layers", ()) if layer is not None]
    if not layers:
        return None
    return np.any([layer[:, :, 3] > 0 for layer in layers], axis=0)


def _notes(models: Models, name: str) -> str:
    return "\n\n".join(drawing.remarks(models.priors[name]))
