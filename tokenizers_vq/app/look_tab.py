"""The first tab: a picture through the tokenizers, beside image files of as many bits."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tokenizers_vq.app import looking
from tokenizers_vq.app.codes_part import CodesPart
from tokenizers_vq.app.looking import ORIGINAL, Look
from tokenizers_vq.app.models import Models
from tokenizers_vq.app.parts import LIMIT, one_line, picture_field

_ABOUT = (
    "Drop a picture: every tokenizer turns it into codes and back. Beside it stand JPEG, WebP and AVIF files of as "
    "many bits as the codes take."
)


def look_tab(models: Models) -> None:
    """Put the tab's components into the page that is being built."""
    gr.Markdown(_ABOUT)
    sizes, first = looking.sizes(models), next(iter(models.tokenizers.values()))
    state = gr.State()
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            picture = picture_field("Drop a picture", "look-picture")
            size = gr.Radio(
                sizes,
                value=max(first.tokenizer.config.size),
                label="pixels a side",
                info="the middle of the picture is cut out and resized",
                elem_id="look-size",
            )
            notes = gr.Markdown(elem_id="look-notes")
        with gr.Column(scale=2, min_width=280, visible=False) as compared:
            with gr.Row():
                left = gr.Dropdown([ORIGINAL], value=ORIGINAL, label="left", min_width=130)
                right = gr.Dropdown(label="right", min_width=130, elem_id="look-right")
            slider = gr.ImageSlider(
                label="drag the line", type="pil", format="png", elem_id="look-slider", elem_classes="shown"
            )
    with gr.Column(visible=False) as rest:
        gallery = _gallery()
        codes = CodesPart(models, state)

    def show(path: str | None, side: int, name: str) -> list[Any]:
        if path is None:
            hidden = gr.update(visible=False)
            return [None, "", hidden, hidden, *[gr.skip()] * (4 + len(codes.outputs))]
        found = looking.look(path, models, int(side))
        known = [view.name for view in found.views]
        return [
            found,
            "\n".join(f"- {note}" for note in found.notes),
            gr.update(visible=True),
            gr.update(visible=True),
            gr.update(choices=known, value=ORIGINAL),
            gr.update(choices=known, value=known[1]),
            (found.views[0].picture, found.views[1].picture),
            [(view.picture, view.caption) for view in found.views],
            *codes.show(found, name),
        ]

    private: dict[str, Any] = {"api_visibility": "private"}
    outputs = [state, notes, compared, rest, left, right, slider, gallery, *codes.outputs]
    for event in (picture.change, size.change):
        event(one_line(show), [picture, size, codes.tokenizer], outputs, concurrency_id=LIMIT, **private)
    slide: dict[str, Any] = {"inputs": [state, left, right], "outputs": slider, "show_progress": "hidden", **private}
    for field in (left, right):
        field.input(one_line(_slide), **slide)
    gallery.select(one_line(_choose), state, right, show_progress="hidden", **private).then(one_line(_slide), **slide)


def _gallery() -> gr.Gallery:
    return gr.Gallery(
        label="click one to see it at the right of the line",
        columns=5,
        height="auto",
        format="png",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="look-gallery",
        elem_classes="shown",
    )


def _slide(found: Look | None, left: str | None, right: str | None) -> Any:
    return None if found is None else (found.view(left).picture, found.view(right).picture)


def _choose(found: Look | None, event: gr.SelectData) -> str | None:
    return None if found is None else found.views[event.index].name
