"""Errors that a user can cause.

Each message is one sentence: what was wrong, where (path, key, value), the limit and the remedy. The command line
prints it without a traceback and exits with status 1; programs catch :class:`TnetError` or one of its subclasses.
"""

from __future__ import annotations

import re

# PyTorch's loaders re-raise an error of a worker with the worker's whole traceback as its message.
_WORKER_TRACEBACK = re.compile(r"\ACaught (\w+) in .*\nOriginal Traceback .*\n(?:[\w.]+\.)?\1: ", re.DOTALL)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or else its type: the reason that an error of ours gives."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class TnetError(Exception):
    """Base of all errors that tnet raises on purpose."""

    def __init__(self, *args: object) -> None:
        if args and isinstance(args[0], str) and _WORKER_TRACEBACK.match(args[0]):
            args = (_WORKER_TRACEBACK.sub("", args[0]).strip(), *args[1:])
        super().__init__(*args)


class GeometryError(TnetError, ValueError):
    """Invalid grid, region, level or number of looks."""


class ConfigError(TnetError, ValueError):
    """Invalid or contradictory configuration of a model or objective."""


class RecipeError(TnetError, ValueError):
    """Unreadable recipe file, unknown key or value of the wrong type."""


class DataError(TnetError, ValueError):
    """Empty, missing or inconsistent data folder, table or manifest."""


class ImageError(DataError):
    """Unreadable image."""


class ImageSizeError(ImageError):
    """Image that is too small."""


class ResourceError(TnetError, RuntimeError):
    """Too little memory, or too many open files, to read an image that may be sound; it is never skipped."""


class CheckpointError(TnetError, ValueError):
    """Missing or damaged weights, or weights of another model."""


class TrainingError(TnetError, RuntimeError):
    """Training run that cannot start or continue."""


class ExportError(TnetError, RuntimeError):
    """Model that cannot be exported, export that differs from its model, or damaged exported file."""


class OutputError(TnetError, OSError):
    """File or folder that cannot be written."""


class ClassesWarning(UserWarning):
    """Classifier of other classes, or of unknown ones, as a start."""


class RepeatedImagesWarning(UserWarning):
    """The same image among training and validation images, or with two labels."""


class LooksWarning(UserWarning):
    """More looks than there are places to look at."""


class PassedOverWarning(UserWarning):
    """Folders or images that are not the user's, and are left out."""


class PartWarning(UserWarning):
    """Damaged part of a job, which is written again."""


class UnreadableWarning(UserWarning):
    """Images that training leaves out, since they cannot be read."""


class MemoryWarning(UserWarning):
    """Batch that did not fit into memory, and was divided."""


class SlowImageWarning(UserWarning):
    """Large image that is decoded in full for a single look."""
