"""The server's app: `/encode`, `/decode`, `/sample`, `/inpaint`, `/health`, and OpenAPI at `/openapi.json`.

Nothing that a request says is ever opened as a path or URL: pictures come as bytes. What is refused, is so in one line,
`{"error": "..."}`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from torch import Tensor

from tokenizers_vq.encoding import BatchEncoder
from tokenizers_vq.pictures import TooLarge
from tokenizers_vq.serving import pictures, schemas
from tokenizers_vq.serving.batching import Batcher
from tokenizers_vq.serving.drawing import Drawer, Drawn, Prepared
from tokenizers_vq.serving.limits import BoundedBody, Gate, Limits, Refused

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")
JSON = "application/json"
RAW = ("application/octet-stream", "image/")
ENCODE, DECODE, DRAW = "encode", "decode", "draw"


class Server:
    """A tokenizer, and a prior where there is one, behind requests."""

    def __init__(self, encoder: BatchEncoder, name: str, limits: Limits, drawer: Drawer | None = None) -> None:
        self.encoder, self.name, self.limits, self.drawer = encoder, name, limits, drawer
        self.gate = Gate(limits.queue)
        self.batcher = Batcher(self._compute, limits.batch, limits.wait)
        # Pictures are decoded and written here: a bound on memory, and the event loop stays free.
        self.pool = ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1)), "pictures")

    def health(self) -> dict[str, Any]:
        """What the server holds and does."""
        encoder, size = self.encoder, self.encoder.image_size
        return {
            "status": "ok",
            "model": self.name,
            "fingerprint": encoder.fingerprint,
            "layout": encoder.layout.to_dict(),
            "image_size": [size, size] if isinstance(size, int) else list(size),
            "channels": encoder.channels,
            "device": str(encoder.device),
            "precision": encoder.precision,
            "prior": None if self.drawer is None else self.drawer.about(),
            "limits": self.limits._asdict(),
            "in_work": self.gate.inside,
            "batches": self.batcher.batches,
            "images": self.batcher.computed,
        }

    async def encode(self, request: Request) -> Response:
        """Pictures of a request -> codes."""
        kind, body = _content_type(request), await _body(request)
        if kind.startswith(RAW):
            found = [body]
        else:
            asked = await self._thread(_parsed, schemas.Encode, kind, body)
            self._bounded(len(asked.images), "images")
            found = [pictures.content(one, f"images.{i}") for i, one in enumerate(asked.images)]
        encoder, most = self.encoder, self.limits.pixels

        def views() -> Tensor:
            size, channels = encoder.image_size, encoder.channels
            return torch.stack([pictures.view(one, f"images.{i}", channels, size, most) for i, one in enumerate(found)])

        with self.gate.admit(len(found)):
            codes = await self.batcher.submit(ENCODE, await self._thread(views), len(found))
        return JSONResponse({"codes": codes.tolist(), "fingerprint": encoder.fingerprint})

    async def decode(self, request: Request) -> Response:
        """Codes of a request -> pictures."""
        asked = await self._thread(_parsed, schemas.Decode, _content_type(request), await _body(request))
        self._bounded(len(asked.codes), "codes")
        if asked.fingerprint not in (None, self.encoder.fingerprint):
            raise Refused(422, f"fingerprint: these are another tokenizer's codes; here is {self.encoder.fingerprint}")
        rows = await self._thread(self._rows, asked.codes)
        with self.gate.admit(len(rows)):
            images = await self.batcher.submit(DECODE, rows, len(rows))
            return await self._pictures(request, images, asked.format)

    async def draw(self, request: Request, kind: type[schemas.Sample] | type[schemas.Inpaint]) -> Response:
        """New images, or a picture with masked pixels drawn anew."""
        drawer = self.drawer
        if drawer is None:
            raise Refused(404, "no prior is served here: start `tvq serve MODEL --prior PRIOR`")
        asked = await self._thread(_parsed, kind, _content_type(request), await _body(request))
        self._bounded(asked.n, "n")
        with self.gate.admit(asked.n):
            prepared = await self._thread(drawer.prepare, asked, pictures.content, self.limits.pixels)
            drawn = await self.batcher.submit((DRAW, prepared.together), prepared, asked.n)
            codes = {"codes": drawn.codes.tolist(), "fingerprint": self.encoder.fingerprint}
            return await self._pictures(request, drawn.images, asked.format, codes)

    def _rows(self, codes: Sequence[Sequence[int]]) -> Tensor:
        layout = self.encoder.layout
        for number, row in enumerate(codes):
            if len(row) != layout.length:
                raise Refused(422, f"codes.{number}: an image has {layout.length} codes, got {len(row)}")
        rows = torch.tensor(codes)
        last = torch.tensor([size - 1 for size in layout.sizes])[layout.streams()]
        wrong = (rows > last).nonzero()
        if len(wrong):
            row, place = wrong[0].tolist()
            raise Refused(422, f"codes.{row}.{place}: {int(rows[row, place])} is no code; the last is {last[place]}")
        return rows

    def _bounded(self, count: int, name: str) -> None:
        if count > self.limits.batch:
            raise Refused(413, f"{name}: {count} images in one request; at most {self.limits.batch} are allowed")

    async def _pictures(
        self, request: Request, images: Tensor, form: str, more: Mapping[str, Any] | None = None
    ) -> Response:
        files = await self._thread(lambda: [pictures.file(image, form) for image in images])
        if len(files) == 1 and form == "png" and request.headers.get("accept", "").startswith("image/png"):
            return Response(files[0], media_type="image/png")
        return JSONResponse({"images": [pictures.text(one) for one in files], **(more or {})})

    async def _thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *arguments)

    def _compute(self, key: Any, items: Sequence[Any]) -> Sequence[Any]:
        if isinstance(key, tuple):
            return self._drawn(items)
        whole, counts = torch.cat(list(items)), [len(item) for item in items]
        return (self.encoder.encode(whole) if key == ENCODE else self.encoder.decode(whole)).split(counts)

    def _drawn(self, items: Sequence[Prepared]) -> list[Drawn]:
        assert self.drawer is not None
        return self.drawer.draw(items)

    @asynccontextmanager
    async def living(self, app: FastAPI) -> AsyncIterator[None]:
        """From start to stop."""
        self.batcher.start()
        yield
        await self.batcher.close()
        self.pool.shutdown(wait=True)


def make_app(encoder: BatchEncoder, name: str, limits: Limits | None = None, drawer: Drawer | None = None) -> FastAPI:
    """The ASGI app of a tokenizer on its device, and of what draws images where it is given."""
    from importlib.metadata import version

    server = Server(encoder, name, limits or Limits(), drawer)
    app = FastAPI(
        title="tokenizers-vq",
        version=version("tokenizers-vq"),
        lifespan=server.living,
        docs_url=None,  # its page takes scripts from another host
        redoc_url=None,
    )
    app.add_middleware(BoundedBody, limits=server.limits)
    _answer_in_one_line(app, server.limits)

    @app.get("/health", summary="What is served, and how busy it is")
    async def health() -> dict[str, Any]:
        return server.health()

    async def encode(request: Request) -> Response:
        return await server.encode(request)

    async def decode(request: Request) -> Response:
        return await server.decode(request)

    async def sample(request: Request) -> Response:
        return await server.draw(request, schemas.Sample)

    async def inpaint(request: Request) -> Response:
        return await server.draw(request, schemas.Inpaint)

    routes = [_Route(encode, schemas.Encode, schemas.Codes), _Route(decode, schemas.Decode, schemas.Images)]
    if drawer is not None:
        routes.append(_Route(sample, schemas.Sample, schemas.Drawings))
        routes.append(_Route(inpaint, schemas.Inpaint, schemas.Drawings))
    for route in routes:
        _add(app, route)
    return app


class _Route(NamedTuple):
    call: Callable[..., Any]
    body: type[BaseModel]
    answer: type[BaseModel]


def _add(app: FastAPI, route: _Route) -> None:
    """The endpoint, described: bodies are read by ourselves, so FastAPI has to be told what they are."""
    content: dict[str, Any] = {JSON: {"schema": route.body.model_json_schema()}}
    if route.body is schemas.Encode:
        content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/*", RAW[0])}
    statuses = (408, 413, 415, 422, 503)
    app.add_api_route(
        f"/{route.call.__name__}",
        route.call,
        methods=["POST"],
        response_model=None,
        summary=str(route.body.__doc__),
        responses={200: {"model": route.answer}, **{status: {"model": schemas.Problem} for status in statuses}},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


def _answer_in_one_line(app: FastAPI, limits: Limits) -> None:
    """Whatever goes wrong is `{"error": "one line"}`."""

    def refused(request: Request, error: Any) -> Response:
        headers = {"retry-after": "1"} if error.status == 503 else None
        return JSONResponse({"error": error.reason}, error.status, headers)

    def invalid(request: Request, error: Any) -> Response:
        if isinstance(error, TooLarge):
            error = f"{error.name}: {error.what}; at most {limits.pixels:,} pixels are allowed"
            return JSONResponse({"error": error}, 413)
        return JSONResponse({"error": " ".join(str(error).split())[:500]}, 422)

    def by_http(request: Request, error: Any) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server failed; its log says why"}, 500)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(ValueError, invalid)
    app.add_exception_handler(HTTPException, by_http)
    app.add_exception_handler(Exception, failed)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", JSON).partition(";")[0].strip().lower()


async def _body(request: Request) -> bytes:
    """The whole body, which the middleware counts. Raises `Refused` (422) for none."""
    body = await request.body()
    if not body:
        raise Refused(422, "the body is empty")
    return body


def _parsed(model: type[B], kind: str, body: bytes) -> B:
    """A JSON body. Raises `Refused` of one line, which names the place."""
    if kind != JSON:
        raise Refused(415, f"a body of {kind[:80] or 'no type'} is not read here; send {JSON}")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(422, f"{where}: {first['msg']}" if where else first["msg"]) from None
