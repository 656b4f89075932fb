"""uvicorn's server, which finishes what it has accepted when it is terminated. Read in uvicorn 0.54.

Its own `handle_exit` closes the listening socket at once, so that new requests see a refused connection, and raises the
signal again at the end, so that the process is killed by it. Overridden are `handle_exit` and `on_tick`, which it calls
ten times a second.
"""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn

from .application import ModelServer

_KEEP_ALIVE_SECONDS = 5


class DrainingServer(uvicorn.Server):
    """At SIGTERM or SIGINT new requests get status 503, the ones in flight are answered, and `run` returns. A second
    signal stops at once; `forced` is then true."""

    def __init__(self, server: ModelServer) -> None:
        config = uvicorn.Config(
            server,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        super().__init__(config)
        self.server = server
        self.forced = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.server.draining:
            self.forced = self.should_exit = self.force_exit = True
        self.server.draining = True

    async def on_tick(self, counter: int) -> bool:
        stopped = await super().on_tick(counter)
        return stopped or (self.server.draining and self.server.in_flight == 0)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(128)
    except OSError as error:
        found.close()
        raise OSError(f"--host {host} --port {port}: {error.strerror or error}") from error
    return found
