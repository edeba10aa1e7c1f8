"""The web application behind ``tnet view``."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from tnet.errors import DataError
from tnet.inference.predictor import DEFAULT_READ
from tnet.models.base import Model
from tnet.scenes.reading import ReadOptions
from tnet.traversal.best_first import Score
from tnet.view.errors import NotFoundError
from tnet.view.exports import Format, exported
from tnet.view.labels import Labels
from tnet.view.listing import Filter, Listing
from tnet.view.plan import MAX_ASKED, Mode, Settings, Stop, abilities
from tnet.view.respond import Json, handle_errors
from tnet.view.runs import Runs
from tnet.view.safety import Guard, allowed_hosts, find_image
from tnet.view.tiles import Tiles, encoded, entity_tag

STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".png": "image/png", ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
_MAX_PAGE = 500
_CACHED = "private, max-age=3600"
_SIDE = 2**24

Text = Annotated[str, Query(max_length=4096)]
Name = Annotated[str | None, Query(max_length=1000)]
Index = Annotated[int, Query(ge=0, le=_SIDE)]
Side = Annotated[int, Field(ge=-_SIDE, le=_SIDE)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StopRequest(_Body):
    """When a search stops by itself."""

    mean_looks: float | None = None
    at_least: float | None = None
    max_ms: Annotated[float | None, Field(gt=0, le=600_000)] = None


class RunRequest(_Body):
    """What to run on which image."""

    path: Annotated[str, Field(max_length=4096)]
    looks: Annotated[int, Field(ge=0, le=2**14)]
    mode: Mode = "policy"
    policy: Annotated[str | None, Field(max_length=100)] = None
    score: Score | None = None
    stop: StopRequest | None = None
    asked: Annotated[list[tuple[Side, Side, Side, Side]], Field(max_length=MAX_ASKED)] = []


class LabelRequest(_Body):
    """A label that was typed."""

    path: Annotated[str, Field(max_length=4096)]
    label: Annotated[str, Field(max_length=1000)]


def create_app(
    model: Model,
    root: Path,
    *,
    name: str = "model",
    host: str = "127.0.0.1",
    read: ReadOptions = DEFAULT_READ,
    predictions: Path | None = None,
    truth: Path | None = None,
    labels: Path | None = None,
) -> FastAPI:
    """Return the application that shows the images below a folder, and runs a model on them.

    Args:
        model: the model, on its device.
        root: folder of the images; nothing outside it is read, links out of it neither.
        name: of the model, as shown.
        host: address that the server listens on.
        read: how images are read for the model.
        predictions: table of predictions for filters, see :class:`tnet.view.listing.Listing`.
        truth: table, or folder, of true classes.
        labels: table to which labels that people type are appended; ``None`` for none.

    Raises:
        DataError: the root or a table is missing or cannot be read.
        OutputError: the table of labels cannot be written.
    """
    if not root.is_dir():
        raise DataError(f"the root {root} {'is not a folder' if root.exists() else 'does not exist'}; correct the path")
    root = root.resolve()
    app = FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, default_response_class=Json
    )  # fmt: skip
    token, (hosts, any_address) = secrets.token_urlsafe(24), allowed_hosts(host)
    listing, table = Listing(root, predictions, truth), None if labels is None else Labels(labels)
    runs, tiles = Runs(model.eval(), read), Tiles(read.scene)
    files = {file.relative_to(STATIC).as_posix(): file for file in STATIC.rglob("*") if file.suffix in _TYPES}
    app.state.runs = runs
    app.add_middleware(Guard, hosts=hosts, any_address=any_address, token=token)
    handle_errors(app, root)

    @app.get("/")
    def page() -> Response:
        return static("index.html")

    @app.get("/static/{file:path}")
    def static(file: str) -> Response:
        if file not in files:
            raise NotFoundError(f"there is no file {file[:200]!r}")
        path = files[file]
        return Response(path.read_bytes(), media_type=_TYPES[path.suffix], headers={"cache-control": "no-cache"})

    @app.get("/api/model")
    def about() -> dict[str, Any]:
        return {"name": name, **abilities(model), "labels": table is not None, "token": token}

    @app.get("/api/images")
    def images(
        search: Annotated[str, Query(max_length=200)] = "",
        filter: Filter = "all",
        label: Name = None,
        predicted: Name = None,
        offset: Index = 0,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 100,
    ) -> dict[str, Any]:
        found = listing.query(search, filter, label or None, predicted or None)
        return {"total": len(found), "items": [vars(entry) for entry in found[offset : offset + limit]]}

    @app.get("/api/image")
    def image(path: Text) -> dict[str, Any]:
        described = tiles.describe(find_image(root, path))
        typed = None if table is None else table.get(path)
        return {"path": path, **described, "label": listing.entry(path).label, "typed_label": typed}

    @app.get("/api/tile")
    def tile(request: Request, path: Text, level: Index, col: Index, row: Index) -> Response:
        file = find_image(root, path)
        return _cached(request, file, ("tile", level, col, row), lambda: tiles.tile(file, level, col, row))

    @app.get("/api/thumb")
    def thumb(request: Request, path: Text) -> Response:
        file = find_image(root, path)
        return _cached(request, file, ("thumb",), lambda: tiles.thumb(file))

    @app.post("/api/run")
    def run(body: RunRequest) -> dict[str, Any]:
        stop = None if body.stop is None else Stop(**body.stop.model_dump())
        settings = Settings(body.mode, body.policy, body.score or "path", None if stop == Stop() else stop)
        return runs.answer(body.path, find_image(root, body.path), settings, body.looks, body.asked)

    @app.get("/api/look")
    def look(run: Text, row: Index) -> Response:
        return Response(encoded(runs.look(run, row), "PNG"), media_type="image/png", headers={"cache-control": _CACHED})

    @app.get("/api/export")
    def export(run: Text, format: Format, rows: Annotated[int | None, Query(ge=1, le=_SIDE)] = None) -> Response:
        content, kind, ending = exported(runs.explained(run, rows, listing.entry(runs.get(run).name).label), format)
        stem = quote(Path(runs.get(run).name).stem + ("-label-studio" if format == "labelstudio" else ""))
        disposition = f"attachment; filename*=UTF-8''{stem}{ending}"
        return Response(content, media_type=kind, headers={"content-disposition": disposition})

    if table is not None:

        @app.post("/api/label")
        def label(body: LabelRequest) -> dict[str, Any]:
            find_image(root, body.path)
            table.add(body.path, body.label)
            return {"path": body.path, "typed_label": table.get(body.path)}

    return app


def _cached(request: Request, file: Path, what: tuple[object, ...], make: Callable[[], bytes]) -> Response:
    """Return an image made of a file, or that the browser has it already."""
    headers = {"cache-control": _CACHED, "etag": entity_tag(file, what)}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type="image/jpeg", headers=headers)
