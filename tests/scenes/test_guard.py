"""What an error means for an image."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tnet.errors import ImageError
from tnet.scenes.guard import accessing, guarded


@pytest.mark.parametrize("context", [guarded(Path("x.png")), accessing(Path("x.png"))])
def test_too_many_open_files_are_not_a_damaged_image(context: AbstractContextManager[None]) -> None:
    with pytest.raises(OSError, match="Too many open files") as caught, context:
        raise OSError(errno.EMFILE, "Too many open files")
    assert not isinstance(caught.value, ImageError)


@pytest.mark.parametrize("context", [guarded(Path("x.png")), accessing(Path("x.png"))])
def test_other_errors_name_the_image(context: AbstractContextManager[None]) -> None:
    with pytest.raises(ImageError, match=r"image x\.png cannot be read: it .*OSError.*strange"), context:
        raise OSError(errno.EIO, "strange")
