"""``tnet pyramid``: an image written so that any look at it reads a few tiles."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class CompressionName(StrEnum):
    """How tiles are compressed; an Enum, because Typer takes no list of a Literal."""

    deflate = "deflate"
    zstd = "zstd"
    jpeg = "jpeg"


def pyramid(
    image: Annotated[Path, typer.Argument(help="Any image that tnet reads.")],
    out: Annotated[Path, typer.Argument(help="File to write, .tif or .tiff.")],
    compression: Annotated[
        CompressionName,
        typer.Option(
            help="deflate: lossless, read by all; zstd: lossless and faster, read by newer programs; jpeg: small, not "
            "lossless, for 8 bit grey or RGB."
        ),
    ] = CompressionName.deflate,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG; colours are not subsampled.")] = 90,
    smallest_px: Annotated[
        int, typer.Option(min=1, help="Add coarser levels until the longer side is at most this.")
    ] = 256,
    series: Annotated[int, typer.Option(min=0, help="Which image of a file that holds several, from 0.")] = 0,
    apply_icc: Annotated[
        bool, typer.Option("--apply-icc", help="Convert colours to sRGB by the image's profile, which is not kept.")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most pixels of an image that has to be decoded as a whole (JPEG, PNG). [default: 2^28]"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Write an image as a tiled TIFF with coarser levels (a pyramid), so that looking at any part of it is quick.

    Each level is half the one before, down to about the size of a glimpse; a pixel is the mean of the pixels it stands
    for. The image is read once, a few rows of tiles at a time; formats that can only be decoded as a whole (JPEG, PNG)
    take the memory of that. Scale and georeference are kept.
    """
    from dataclasses import replace

    from tnet.inference.progress import progress_bar
    from tnet.scenes.pyramid import write_pyramid
    from tnet.scenes.readers.base import ReaderOptions

    options = ReaderOptions(series=series, apply_icc=apply_icc)
    if max_pixels is not None:
        options = replace(options, max_pixels=max_pixels)
    with progress_bar(progress) as bar:
        task = bar.add_task("tiles", total=None, visible=False)
        written = write_pyramid(
            image, out, compression=compression.value, quality=quality, smallest_px=smallest_px, overwrite=overwrite,
            options=options, on_tile=lambda done, total: bar.update(task, completed=done, total=total, visible=True),
        )  # fmt: skip
    levels = ", ".join(f"{height} x {width}" for height, width in written.levels_hw)
    typer.echo(f"{written.path}: {written.bytes / 1e6:.1f} MB, {len(written.levels_hw)} levels ({levels})")
