"""The process of ``tnet view``: one port, until Ctrl-C."""

from __future__ import annotations

import errno
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from tnet.errors import ConfigError
from tnet.view.runs import Runs


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 is any free one.

    Raises:
        ConfigError: the port is in use or not allowed, or the host is not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} of {host} is in use, perhaps by another tnet view; give another --port"
        elif error.errno in (errno.EACCES, errno.EPERM):
            problem = f"port {port} of {host} is not allowed ({error.strerror}); give a --port of 1024 or more"
        else:
            problem = f"host {host!r} is not an address of this machine ({error.strerror}); use --host 127.0.0.1"
        raise ConfigError(problem) from None


def address_of(listener: socket.socket) -> str:
    """Return the address of a listening socket for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"


class _Server(uvicorn.Server):
    """Ends at the first signal, in the middle of a run too."""

    def __init__(self, config: uvicorn.Config, runs: Runs) -> None:
        super().__init__(config)
        self.runs = runs

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.runs.closing = True
        super().handle_exit(sig, frame)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until a signal ends the process."""
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_level="critical", log_config=None, access_log=False, proxy_headers=False,
        server_header=False, timeout_graceful_shutdown=0,
    )  # fmt: skip
    _Server(config, app.state.runs).run(sockets=[listener])
