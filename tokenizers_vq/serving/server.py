"""Running the app: a socket, uvicorn, and a stop that lets requests in work end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 128
GRACE = 30
"""seconds that requests in work have to end"""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port` (0: any free one). Raises `ValueError` of one line."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen at {host}:{port} ({reason}): give another --host or --port") from None


def run(app: Any, listener: socket.socket, ready: Callable[[str], None], patience: float = 30.0) -> None:
    """Serve until SIGINT or SIGTERM; then no new request is taken, and those in work end.

    `ready` is called with the address once requests are answered. Connections that send no whole request for
    `patience` seconds are closed.
    """
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
        lifespan="on",
        http=_impatient(patience),
        ws="none",
    )
    server = _Server(config, lambda: ready(f"http://{f'[{host}]' if ':' in host else host}:{port}"))
    with listener, _signals_survived():
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def _impatient(patience: float) -> type[H11Protocol]:
    """HTTP over connections that are closed where they bring no request for so long: uvicorn would wait forever."""

    class Impatient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look(None)

        def _look(self, before: Any) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and before is not None and before == (self.cycle,):
                self.transport.close()
            elif not self.transport.is_closing():
                self._clock = self.loop.call_later(patience, self._look, (self.cycle,) if idle else None)

        def connection_lost(self, exc: Exception | None) -> None:
            self._clock.cancel()
            super().connection_lost(exc)

    return Impatient


@contextmanager
def _signals_survived() -> Iterator[None]:
    """Uvicorn raises the signal that stopped it once more when all is done: here that was the wish, and no failure."""
    if threading.current_thread() is not threading.main_thread():  # signals belong to whoever owns them
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
