"""What an error means for an image."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tnet.errors import ImageError, ResourceError
from tnet.scenes.guard import accessing, guarded


@pytest.mark.parametrize("context", [guarded(Path("x.png")), accessing(Path("x.png"))])
def test_too_many_open_files_are_not_a_damaged_image(context: AbstractContextManager[None]) -> None:
    with pytest.raises(ResourceError, match="too many files are open"), context:
        raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("context", [guarded(Path("x.png")), accessing(Path("x.png"))])
def test_other_errors_name_the_image(context: AbstractContextManager[None]) -> None:
    with pytest.raises(ImageError, match=r"image x\.png cannot be read: it .*OSError.*strange"), context:
        raise OSError(errno.EIO, "strange")
