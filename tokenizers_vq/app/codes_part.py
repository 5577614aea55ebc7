"""Below the comparison of the first tab: the map of a tokenizer's codes, and the code that was clicked."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tokenizers_vq.app import codes
from tokenizers_vq.app.looking import Look
from tokenizers_vq.app.models import Models
from tokenizers_vq.app.parts import LIMIT, one_line
from tokenizers_vq.codes import CodeLayout
from tokenizers_vq.evaluation.exemplars import finest


class CodesPart:
    """The map of the codes of one tokenizer and stream, and what is known of one code.

    `state` holds the `Look` at the picture. `show` gives values for `outputs`.
    """

    def __init__(self, models: Models, state: gr.State) -> None:
        self.models, names = models, list(models.tokenizers)
        with gr.Row():
            self.tokenizer = gr.Dropdown(names, value=names[0], label="the codes of", visible=len(names) > 1)
            self.stream = gr.Dropdown(label="grid and level", visible=False, elem_id="look-stream")
        caption = gr.Markdown(elem_id="code-caption")
        with gr.Row():
            code_map = _image("Map of the codes: click one", "code-map")
            where = _image("Where it stands", "code-where")
            alone = _image("That code at every place, decoded", "code-alone")
        patches = _image("What the picture shows around its places", "code-patches", height=130)
        code = [caption, where, alone, patches]
        self.outputs = [self.tokenizer, self.stream, code_map, *code]
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_id": LIMIT}
        self.tokenizer.input(one_line(self.show), [state, self.tokenizer], self.outputs, **private)
        self.stream.input(one_line(self.show), [state, self.tokenizer, self.stream], self.outputs, **private)
        code_map.select(one_line(self._click), [state, self.tokenizer, self.stream], code, **private)

    def show(self, found: Look, name: str, stream: int | None = None) -> list[Any]:
        """The map, and the commonest code of it; of another tokenizer where `name` did not take the picture."""
        name = name if name in found.seen else next(iter(found.seen))
        layout = self._layout(found, name)
        listed = codes.streams(layout)
        stream = finest(layout) if stream is None else stream
        drawn = codes.code_map(found.seen[name].codes, layout, stream)
        choices = list(zip(listed, range(len(listed)), strict=True))
        return [
            gr.update(choices=list(found.seen), value=name),
            gr.update(visible=len(listed) > 1, choices=choices, value=stream),
            drawn.picture,
            *self._code(found, name, stream, drawn.commonest),
        ]

    def _click(self, found: Look, name: str, stream: int, event: gr.SelectData) -> list[Any]:
        code = codes.code_map(found.seen[name].codes, self._layout(found, name), stream).at(*event.index)
        return [gr.skip()] * 4 if code is None else self._code(found, name, stream, code)

    def _code(self, found: Look, name: str, stream: int, code: int) -> list[Any]:
        one = codes.find_code(self.models.tokenizers[name], found.seen[name], stream, code)
        told = codes.caption(one, self._layout(found, name), stream)
        return [f"{told} Click another on the map.", one.where, one.alone, one.patches]

    def _layout(self, found: Look, name: str) -> CodeLayout:
        return self.models.tokenizers[name].layout(*found.seen[name].image.shape[-2:])


def _image(title: str, elem_id: str, **options: Any) -> gr.Image:
    """A picture below its title, which would cover a part of it inside."""
    with gr.Column(min_width=240):
        gr.Markdown(title)
        return gr.Image(
            show_label=False,
            label=title,
            type="pil",
            format="png",
            interactive=False,
            buttons=[],
            elem_id=elem_id,
            elem_classes="shown",
            **options,
        )
