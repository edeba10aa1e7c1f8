"""Errors that a user can cause.

Each is one sentence that says what was wrong, where (path, key, value), what the limit is and what to do about
it. The command line prints that sentence, without a traceback, and exits with status 1; a program can catch
:class:`TnetError`, or the class that names the part that went wrong.
"""

from __future__ import annotations

import re

# A worker of PyTorch's loaders hands an error on as one of its kind whose message is the worker's whole traceback.
_WORKERS_TRACEBACK = re.compile(r"\ACaught (\w+) in .*\nOriginal Traceback .*\n(?:[\w.]+\.)?\1: ", re.DOTALL)


class TnetError(Exception):
    """Base of every error that tnet raises on purpose."""

    def __init__(self, *args: object) -> None:
        if args and isinstance(args[0], str) and _WORKERS_TRACEBACK.match(args[0]):
            args = (_WORKERS_TRACEBACK.sub("", args[0]).strip(), *args[1:])
        super().__init__(*args)


class GeometryError(TnetError, ValueError):
    """A grid, region, level or number of looks that cannot be."""


class ConfigError(TnetError, ValueError):
    """A model or objective configuration that contradicts itself."""


class RecipeError(TnetError, ValueError):
    """A recipe file that cannot be read, or has an unknown key or a wrong value."""


class DataError(TnetError, ValueError):
    """A data folder, table or manifest that is empty, missing or inconsistent."""


class ImageError(DataError):
    """One picture that cannot be read."""


class CheckpointError(TnetError, ValueError):
    """Weights that are missing, damaged, or belong to another model."""


class TrainingError(TnetError, RuntimeError):
    """A training run that cannot start or go on."""


class OutputError(TnetError, OSError):
    """A file or folder that cannot be written."""


class SlowImageWarning(UserWarning):
    """An image that is read in full for a single look, though it is large."""
