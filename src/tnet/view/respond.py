"""JSON answers, and errors as one sentence each, of the viewer and of ``tnet serve``."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from typing_extensions import override

from tnet.errors import ImageError, OutputError, ResourceError, TnetError
from tnet.view.errors import BusyError, NotFoundError

_STATUSES: dict[type[TnetError], int] = {
    TnetError: 400, NotFoundError: 404, ImageError: 422, OutputError: 500, ResourceError: 500, BusyError: 503,
}  # fmt: skip


class Json(JSONResponse):
    """JSON in ASCII, which holds every name."""

    @override
    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def refusal(status: int, sentence: str) -> Json:
    """Return an error; one of status 503 asks to come back in a second."""
    return Json({"error": sentence}, status, {"retry-after": "1"} if status == 503 else None)


def handle_errors(app: FastAPI, root: Path | None) -> None:
    """Answer every error of a request with a sentence, in which paths start below the root."""

    def say(status: int, error: object) -> Json:
        return refusal(status, str(error) if root is None else str(error).replace(f"{root}/", ""))

    for kind, status in _STATUSES.items():
        app.add_exception_handler(kind, lambda _, error, status=status: say(status, error))
    app.add_exception_handler(RequestValidationError, lambda _, error: say(400, _invalid(error)))
    app.add_exception_handler(HTTPException, lambda _, error: say(error.status_code, _detail(error)))


def _detail(error: Any) -> str:
    is_phrase = error.detail == HTTPStatus(error.status_code).phrase
    return str(error.detail).lower() if is_phrase else str(error.detail)


def _invalid(error: Any) -> str:
    """Return the first problem of a request as a sentence."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return f"{where} is not valid ({first['msg'].lower()}); correct the request"
