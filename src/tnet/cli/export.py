"""``tnet export``: a model as files that run without tnet."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from tnet.cli import common
from tnet.errors import OutputError

FormatName = Literal["onnx", "torch-export", "openvino"]
_FORMAT_HELP = "onnx: one .onnx file; torch-export: a .pt2 file for torch.export.load; openvino: .xml and .bin. "
_SIZE_HELP = (
    "Size of the images that the export takes, such as 768x1024, or 1024. [default: square, at which the last level "
    "shows full resolution]"
)
_PARTS_HELP = (
    "Export the three steps see, locate and answer instead, for a loop of your own over files of any size, and for "
    "`tnet predict --engine`."
)


def export(
    model: common.ModelArgument,
    out: Annotated[Path, typer.Argument(help="Folder for the export.")],
    format: Annotated[FormatName, typer.Option(help=_FORMAT_HELP)] = "onnx",
    looks: common.LooksOption = None,
    size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help=_SIZE_HELP)] = None,
    parts: Annotated[bool, typer.Option("--parts", help=_PARTS_HELP)] = False,
    opset: Annotated[int, typer.Option(help="Version of the ONNX operators.")] = 20,
    overwrite: common.OverwriteOption = False,
) -> None:
    """Export a model, with its preprocessing and a fixed number of looks, to ONNX, OpenVINO or torch.export.

    The export is run on three images and compared with the model; if it differs, nothing is written. export.json in the
    folder describes its classes, looks, geometry and preprocessing.
    """
    chosen = common.parse_looks(looks) if looks is not None else None
    size_hw = common.parse_image_size(size) if size is not None else None

    from tnet.export import export_model
    from tnet.models.io import load_model, model_folder, recipe_path

    if out.resolve() in (model.resolve(), model_folder(model).resolve()):
        raise OutputError(f"{out} is the folder of the model; choose another place for the export")
    exported = export_model(
        load_model(model), out, format, looks=chosen, size_hw=size_hw, parts=parts, opset=opset,
        recipe=recipe_path(model), overwrite=overwrite,
    )  # fmt: skip
    height, width = exported.size_hw
    scope = "images of any size" if parts else f"images of {height} x {width} px (height x width)"
    shown = "x".join(map(str, exported.looks)) or "0"
    common.say(f"{out}: {', '.join(exported.files)}, for {scope}, {shown} looks")
    common.say(f"verified: the same regions as the model, logits within {exported.difference:.0e} of the largest")
    if parts:
        common.say(f"next: tnet predict {shlex.quote(str(out))} IMAGES")
