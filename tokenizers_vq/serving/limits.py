"""What a stranger may ask of the server: bounds, and refusals of one line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Limits(NamedTuple):
    """Bounds of a server."""

    batch: int = 32
    """rows (images) of one request, and of requests that are computed together"""
    wait: float = 0.003
    """seconds that a request waits for others to be computed with"""
    queue: int = 256
    """rows that may be in work or wait"""
    body: int = 16 * 2**20
    """bytes of a request's body"""
    pixels: int = 2**24
    """pixels of a picture, at 12 bytes each; refused before it is decoded"""
    patience: float = 30.0
    """seconds that the server waits for the next bytes of a body"""


class Refused(Exception):  # noqa: N818 (what happened to the request)
    """A request that is answered with an HTTP status and one line."""

    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, " ".join(reason.split())[:500]
        super().__init__(self.reason)


class Gate:
    """Counts the rows in work, so that what waits is bounded."""

    def __init__(self, most: int) -> None:
        self.most, self.inside = most, 0

    @contextmanager
    def admit(self, rows: int) -> Iterator[None]:
        """Rows are inside until the block ends. Raises `Refused` (503) where they are too many with those inside."""
        if self.inside and self.inside + rows > self.most:
            raise Refused(503, f"busy: {self.inside} images are in work, {self.most} may be; try again in a second")
        self.inside += rows
        try:
            yield
        finally:
            self.inside -= rows


class BoundedBody:
    """ASGI middleware: a body is counted while it is read, and refused as soon as it is too long or too slow."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, seen, whole = self.limits.body, 0, False
        said = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        # Somewhat more than may be is read, and dropped: who still sends does not hear that it is refused.
        read = 4 * most if int(said[:20] or 0) <= 4 * most else 0

        async def counted() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()  # which says when the client has gone
            while True:
                if seen > most and (whole or seen > read):
                    raise Refused(413, f"the body is larger than {most:,} bytes; send fewer or smaller images")
                message = await self._next(receive)
                seen = max(seen, most + 1) if not read else seen + len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if seen <= most:
                    return message

        await self.app(scope, counted, send)

    async def _next(self, receive: Receive) -> Message:
        try:
            return await asyncio.wait_for(receive(), self.limits.patience)
        except asyncio.TimeoutError:
            raise Refused(408, f"the body stopped for {self.limits.patience:g} seconds") from None
