"""`tvq serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenizers_vq.cli import common, groups


def serve(
    model: common.Model,
    prior: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN|MODEL", help="also draw images with this prior; several are a chain, coarse first"),
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen at; others than this machine's own are open to all")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0: any that is free")] = 8000,
    batch_size: Annotated[
        int, typer.Option(min=1, help="images that are computed together, and the most of one request")
    ] = 32,
    wait: Annotated[float, typer.Option(min=0, max=1000, help="milliseconds that a request waits for others")] = 3.0,
    queue: Annotated[int, typer.Option(min=1, help="images in work and waiting; more are refused")] = 256,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, help="larger pictures are refused before they are decoded")] = 2**24,
    *,
    computing: groups.Computing,
) -> None:
    """Serve codes over HTTP: encode and decode images, and with a prior draw and fill in; OpenAPI at /openapi.json."""
    try:
        from tokenizers_vq.serving import server
        from tokenizers_vq.serving.app import make_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "h11"):
            raise
        raise ValueError(f"serving needs '{error.name}': pip install 'tokenizers-vq[serve]'") from None
    import ipaddress
    import warnings

    from tokenizers_vq.serving.limits import Limits
    from tokenizers_vq.verbs.opening import open_encoder

    warnings.filterwarnings("ignore", module="PIL")  # on strangers' files, which are refused where they are unreadable
    if queue < batch_size:
        raise ValueError(f"--queue: {queue} images are fewer than one request may have (--batch-size {batch_size})")
    listener = server.listen(host, port)
    encoder = open_encoder(model, *computing)
    drawer = None
    if prior:
        from prior.serving import open_drawer

        drawer = open_drawer(prior, encoder)
    limits = Limits(batch_size, wait / 1000, queue, max_body * 2**20, max_pixels)
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        common.note("anybody who reaches this address may use the server: it asks for no password")
    server.run(make_app(encoder, model, limits, drawer), listener, lambda url: print(f"serving at {url}", flush=True))
    common.note("stopped")
