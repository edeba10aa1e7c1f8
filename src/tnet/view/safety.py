"""What the server refuses, before any route sees it, and which files it opens."""

from __future__ import annotations

import ipaddress
import logging
import platform
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from tnet.scenes.find import image_exists, is_image_path
from tnet.scenes.guard import one_line
from tnet.view.errors import NotFoundError
from tnet.view.respond import refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = "x-tnet-token"
MAX_BODY_BYTES = 64 * 2**10
MAX_REQUESTS = 64
"""Largest number of requests that are answered at a time; ten people who look around need about 60."""

_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MAX_PATH = 4096  # characters

_log = logging.getLogger(__name__)


def find_image(root: Path, path: str) -> Path:
    """Return the file of an image below the folder ``root``, which is resolved.

    Raises:
        NotFoundError: there is no such image below the root; also for a path that leads out of it, by ``..`` or a link,
            and for a hidden one.
    """
    problem = NotFoundError(f"there is no image {path[:200]!r} below the root; choose one from the list")
    parts = path.split("/")
    if len(path) > _MAX_PATH or "\0" in path or not is_utf8(path) or not is_image_path(path):
        raise problem
    if any(part.startswith(".") or not part for part in parts):  # also "..", and an absolute path's empty first part
        raise problem
    try:
        file = root.joinpath(*parts)
        is_there = image_exists(file) and file.resolve(strict=True).is_relative_to(root)
    except (OSError, ValueError, RuntimeError):  # no permission, a name that is too long, links in a circle
        raise problem from None
    if not is_there:
        raise problem
    return file


def is_utf8(text: str) -> bool:
    """Return whether a name can be written as UTF-8, as JSON and addresses need it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class Guard:
    """ASGI middleware that limits requests, and adds headers to every response.

    Args:
        app: the application.
        hosts: names by which the server may be addressed; a page elsewhere cannot reach it by a name of its own.
        any_address: accept any numeric address, for a server that listens on all of the machine's.
        token: what a request that changes or computes something must send in the header ``X-Tnet-Token``.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], any_address: bool, token: str) -> None:
        self.app, self.hosts, self.any_address, self.token = app, frozenset(hosts), any_address, token
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        refused = self._refusal(scope)
        if refused is None and self._running >= MAX_REQUESTS:
            refused = 503, "too many requests at a time; try again in a second"
        if refused is not None:
            await refusal(*refused)(scope, receive, send_with_headers)
            return
        self._running += 1
        try:
            await self.app(scope, _Body(receive), send_with_headers)
        except Exception as error:
            _log.exception("a request failed")
            if not started:
                answer = refusal(500, f"the request failed ({one_line(error)}); see the server's output")
                await answer(scope, receive, send_with_headers)
        finally:
            self._running -= 1

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and sentence if the request is refused by its head."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not is_known_host(host, self.hosts, self.any_address):
            return 403, f"this server is not addressed as {host[:200]!r}; use http://localhost, or start it with --host"
        if headers.get(b"sec-fetch-site") == "cross-site" and scope["path"] != "/":
            return 403, "this request comes from another site"
        if scope["method"] not in ("GET", "POST"):
            return 405, f"the method {scope['method'][:20]!r} is not supported; use GET or POST"
        if scope["method"] == "POST":
            origin = urlsplit(headers.get(b"origin", ""))
            if origin.scheme not in ("http", "https") or origin.netloc != host:
                return 403, "this request does not come from the viewer's own page"
            if not secrets.compare_digest(headers.get(TOKEN_HEADER.encode(), "").encode(), self.token.encode()):
                return 403, "the page belongs to an earlier start of the viewer; reload it"
            if not headers.get(b"content-type", "").startswith("application/json"):
                return 415, "the body must be JSON (content-type: application/json)"
            length = headers.get(b"content-length", "0")
            if not length.isdigit() or int(length[:20]) > MAX_BODY_BYTES:
                return 413, _TOO_LARGE
        return None


def allowed_hosts(host: str) -> tuple[list[str], bool]:
    """Return the names by which a server that listens on ``host`` may be addressed, and whether any address may."""
    is_any = host in ("", "0.0.0.0", "::")
    return [*_LOOPBACK, host.lower(), *([platform.node().lower()] if is_any else [])], is_any


def is_known_host(host: str, hosts: Collection[str], any_address: bool) -> bool:
    """Return whether a ``Host`` header names this server; arguments: see :func:`allowed_hosts`."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name in hosts or (any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_TOO_LARGE = f"the request has a body of more than {MAX_BODY_BYTES // 2**10} kilobytes; send less"


class _Body:
    """Receives a request's body up to the limit, whatever its head says of its length."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.nbytes = receive, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.nbytes += len(message.get("body", b""))
        if self.nbytes > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LARGE)
        return message
