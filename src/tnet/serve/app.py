"""The web application behind ``tnet serve``."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tnet.inference.predictor import AnyImage, iter_predictions
from tnet.inference.records import Prediction
from tnet.models.base import Model
from tnet.scenes.reading import ReadOptions
from tnet.serve.batches import Batches
from tnet.serve.decoding import Decoder
from tnet.view.respond import Json, handle_errors, refusal
from tnet.view.safety import find_image, is_known_host

_TYPES = ("application/octet-stream", "image/")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: size of an image that is sent.
        waiting: requests that are answered or wait; more get status 503.
        seconds: time to decode one image.
        batch_size: images per batch of the model.
        wait_s: seconds that an image waits for others.
        decoders: processes that decode.
    """

    body_bytes: int = 64 * 2**20
    waiting: int = 64
    seconds: float = 20.0
    batch_size: int = 8
    wait_s: float = 0.005
    decoders: int = 1


def create_app(
    model: Model, read: ReadOptions, *, hosts: Sequence[str], any_address: bool = False, root: Path | None = None,
    limits: Limits | None = None, allow_small: bool = False,
) -> FastAPI:  # fmt: skip
    """Return the application.

    ``POST /predict`` takes the bytes of an image (content type ``image/*`` or ``application/octet-stream``), or, if
    there is a ``root``, JSON ``{"path": ...}`` of an image below it; ``?looks=3`` is the number of looks. It returns a
    :class:`~tnet.inference.records.Prediction` as JSON. ``GET /health`` and ``GET /metrics`` (Prometheus) are for
    whoever watches it.

    Args:
        model: the model, on its device, in evaluation mode.
        read: how images are read.
        hosts: names by which the server may be addressed.
        any_address: accept any numeric address.
        root: folder of images that may be named; ``None`` for none.
        limits: what a client may ask for.
        allow_small: enlarge images below the model's base resolution.
    """
    limits = limits or Limits()
    folder = None if root is None else root.resolve()
    device = next(model.parameters()).device
    statuses: Counter[int] = Counter()
    running = 0

    def predict(images: Sequence[AnyImage], looks: int | None) -> list[Prediction]:
        options: dict[str, Any] = {"read": read, "allow_small": allow_small, "progress": False, "device": device}
        found = iter_predictions(model, images, looks=looks, batch_size=len(images), **options)
        return [item for item in found if isinstance(item, Prediction)]

    batches = Batches(predict, limits.batch_size, limits.waiting, limits.wait_s)
    decoder = Decoder(replace(read, mode="memory", channels=model.config.in_channels), limits.decoders, limits.seconds)

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        batches.close()
        decoder.close()

    app = FastAPI(title="tnet serve", docs_url=None, redoc_url=None, openapi_url=None, lifespan=closing)
    app.state.batches = batches
    handle_errors(app, folder)

    @app.middleware("http")
    async def limit(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        nonlocal running
        host = request.headers.get("host", "")
        if not is_known_host(host, hosts, any_address):
            return refusal(403, f"this server is not addressed as {host[:200]!r}; start it with --host")
        is_work = request.url.path == "/predict"
        if is_work and running >= limits.waiting:
            statuses[503] += 1
            return refusal(503, "too many requests are waiting; try again in a second")
        running += is_work
        try:
            response = await call(request)
        finally:
            running -= is_work
        if is_work:
            statuses[response.status_code] += 1
        return response

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:
        _log.error("a request failed", exc_info=error)
        return refusal(500, "the request failed; see the server's output")

    @app.post("/predict")
    async def answer(request: Request, looks: int | None = None) -> Response:
        model.config.resolve_looks(looks)
        kind = request.headers.get("content-type", "")
        body = await _body(request, limits.body_bytes)
        image: AnyImage
        if kind.startswith(_TYPES):
            image, name = await run_in_threadpool(decoder.decode, body), None
        elif kind.startswith("application/json") and folder is not None:
            path = find_image(folder, _path_in(body))
            image, name = path, path.relative_to(folder).as_posix()
        else:
            also = "" if folder is None else ", or JSON with a path below the root"
            raise HTTPException(415, f"send the bytes of an image (content-type: image/jpeg){also}")
        future: Future[Prediction] = batches.submit(image, looks)
        prediction = await asyncio.wrap_future(future)
        return Json(asdict(replace(prediction, path=name or "")))

    @app.get("/health")
    async def health() -> Response:
        return Json({"status": "ok", "model": model.config.line(), "classes": list(model.config.class_names)})

    @app.get("/metrics")
    async def metrics() -> Response:
        counts = batches.counts
        lines = [f'tnet_requests_total{{status="{status}"}} {count}' for status, count in sorted(statuses.items())]
        lines += [
            f"tnet_images_total {counts.images}", f"tnet_images_failed_total {counts.failed}",
            f"tnet_batches_total {counts.batches}", f"tnet_model_seconds_total {counts.seconds:.6f}",
            f"tnet_waiting {batches.waiting}", f"tnet_requests_running {running}",
            f"tnet_uptime_seconds {time.monotonic() - counts.started:.0f}",
        ]  # fmt: skip
        return PlainTextResponse("\n".join(lines) + "\n")

    return app


async def _body(request: Request, most: int) -> bytes:
    """Return the body, or refuse it as soon as it is too large."""
    problem = HTTPException(413, f"the image has more than {most / 2**20:g} MB; send a smaller one")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > most:
        raise problem
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise problem
    if not body:
        raise HTTPException(400, "the request has no body; send the bytes of an image")
    return bytes(body)


def _path_in(body: bytes) -> str:
    try:
        path = json.loads(body)["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        path = None
    if not isinstance(path, str):
        raise HTTPException(400, 'the body is not JSON with a path; send {"path": "folder/image.png"}')
    return path
