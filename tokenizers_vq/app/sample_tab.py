"""The second tab: new pictures of a prior."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tokenizers_vq.app import drawing
from tokenizers_vq.app.models import Models
from tokenizers_vq.app.parts import LIMIT, Fields, Told, numbered, one_line, small_gallery

NO_PRIOR = (
    "No prior is open, so there is nothing to draw with. Name one: `tvq app TOKENIZER PRIOR`, such as "
    "`tvq app gpt-tiny-imagenet-64`, or a run of `tvq-prior train`."
)


def sample_tab(models: Models) -> None:
    """Put the tab's components into the page that is being built."""
    names = list(models.priors)
    if not names:
        gr.Markdown(NO_PRIOR)
        return
    gr.Markdown("A prior draws codes, and its tokenizer makes pictures of them. Nothing here was ever photographed.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            prior = gr.Dropdown(names, value=names[0], label="prior", visible=len(names) > 1)
            told = Told(models, names)
            fields = Fields(drawing.usual_guidance(models.priors[names[0]]))
            button = gr.Button("Draw", variant="primary", elem_id="sample-draw")
        with gr.Column(scale=2, min_width=280):
            gallery = small_gallery("new pictures", "samples")

    def draw(name: str, *values: Any) -> list[Any]:
        split = len(told.fields)
        given, wish = told.given(name, values[:split]), fields.wish(values[split:])
        return numbered(drawing.sample(models.priors[name], given, wish))

    def choose(name: str) -> list[Any]:
        return [drawing.usual_guidance(models.priors[name]), *told.show(name)]

    inputs = [prior, *told.fields, *fields.all]
    private: dict[str, Any] = {"api_visibility": "private"}
    button.click(one_line(draw), inputs, gallery, concurrency_id=LIMIT, **private)
    prior.change(choose, prior, [fields.guidance, *told.fields], show_progress="hidden", **private)
