"""The page itself: three tabs over `looking`, `codes` and `drawing`, served by gradio."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from tokenizers_vq.app import pictures
from tokenizers_vq.app.fill_tab import fill_tab
from tokenizers_vq.app.look_tab import look_tab
from tokenizers_vq.app.models import Models
from tokenizers_vq.app.sample_tab import sample_tab

_KEPT = (3600, 3600)
"""seconds that pictures stay on disk, and between clearings; at the end all go"""
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
.shown img, .shown canvas { image-rendering: pixelated; }
.shown .caption-label { white-space: normal; max-width: 100%; }
.shown .grid-wrap { max-height: none !important; }
footer { display: none !important; }
@media (max-width: 640px) {
  .gradio-container .app, .gradio-container .wrap:has(> main) { padding: 8px !important; }
  .shown .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""


def build(models: Models) -> gr.Blocks:
    """The page of these models."""
    with gr.Blocks(title="tokenizers-vq", analytics_enabled=False, delete_cache=_KEPT) as page:
        names = ", ".join([*models.tokenizers, *models.priors])
        gr.Markdown(f"# tokenizers-vq\n\nPictures as codes, and codes as pictures. Open here: {names}.")
        with gr.Tab("Take apart"):
            look_tab(models)
        with gr.Tab("Draw"):
            sample_tab(models)
        with gr.Tab("Fill in"):
            fill_tab(models)
    return page


def serve(
    models: Models, host: str = "127.0.0.1", port: int | None = None, started: Callable[[str], None] | None = None
) -> None:
    """Serve the page until Ctrl-C. `port` None: the first free one from 7860 on; `started` is called with the address.

    Raises `OSError` where the port is taken.
    """
    page = build(models).queue(default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        inbrowser=False,
        share=False,
        quiet=True,
        max_file_size=pictures.MAX_BYTES,
        ssr_mode=False,
        footer_links=[],
        css=CSS,
        prevent_thread_lock=True,
    )
    if started is not None:
        started(address)
    page.block_thread()
