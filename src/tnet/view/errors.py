"""Errors of requests, in the viewer and in ``tnet serve``."""

from __future__ import annotations

from tnet.errors import DataError, TnetError


class NotFoundError(DataError):
    """Image, tile, region or run that does not exist."""


class BusyError(TnetError):
    """Request that must be repeated later, since too many are waiting for the model."""
