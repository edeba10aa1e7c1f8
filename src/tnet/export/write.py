"""Export of a model to a folder, verified against the model itself before anything is left there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Int, Num, UInt8
from torch import Tensor

from tnet.baselines.saccader import Saccader
from tnet.errors import ConfigError, ExportError, first_line
from tnet.export.engine import ANSWER, LOCATE, SEE, SEE_REGION, SEE_WHOLE, EngineTNet
from tnet.export.metadata import METADATA_NAME, Metadata, describe_export
from tnet.export.parts import ANSWER_OUTPUTS, LOCATE_OUTPUTS, SEE_OUTPUTS, Answer, Locate, See, check_parts
from tnet.export.programs import DEFAULT_OPSET, check_opset, save_program, trace, write_onnx
from tnet.export.resize import is_reproduced
from tnet.export.runtime import Run, open_session, require
from tnet.export.saccader import FixedSaccader
from tnet.export.unrolled import OUTPUTS, FixedLooks
from tnet.files import atomic_folder, check_new_folder
from tnet.models.base import Model, ModelConfig, ModelOutput
from tnet.models.config import TNetConfig
from tnet.models.tnet import TNet

Format = Literal["onnx", "torch-export", "openvino"]
TOLERANCE = 1e-4
"""Largest difference of logits from the model's own, relative to the largest logit."""

_NAMES: dict[Format, str] = {"onnx": "model.onnx", "torch-export": "model.pt2", "openvino": "model.xml"}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    size_hw: tuple[int, int]  # of the images, or of those that the parts were verified with; pixels
    looks: tuple[int, ...]
    difference: float  # of the logits from the model's own, relative to the largest logit


def export_model(
    model: Model,
    out: str | Path,
    form: Format = "onnx",
    *,
    looks: int | Sequence[int] | None = None,
    size_hw: tuple[int, int] | None = None,
    parts: bool = False,
    opset: int = DEFAULT_OPSET,
    recipe: Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a model to a folder: as one function of an image, or as the parts of a traversal.

    The whole model takes raw ``uint8`` images of one size, in batches of any size, and returns
    :data:`tnet.export.unrolled.OUTPUTS`. The parts are :class:`~tnet.export.parts.See`, ``Locate`` and ``Answer``.
    ``export.json`` describes both. What was written is run on three images and compared with the model: the same
    regions, and logits within :data:`TOLERANCE`.

    Args:
        model: a TNet; a plain network, which is a TNet of one level; or a Saccader.
        out: output folder; must be new or empty unless ``overwrite``.
        form: ``onnx``, ``torch-export`` or ``openvino``; parts are ``onnx``.
        looks: as in ``model(images, looks)``.
        size_hw: height and width of the images, pixels; by default those at which the last level shows full resolution.
        parts: export the steps instead of the whole.
        opset: version of the ONNX operators.
        recipe: recipe of the model, which is copied beside the parts, so that tnet reads images as in training.
        overwrite: replace the files in an existing folder.

    Raises:
        ConfigError: the model or its looks cannot be exported, or a library is missing; says what can.
        GeometryError: images of this size are too small for the looks.
        ExportError: a layer cannot be exported, or the export differs from the model; nothing is left behind.
        OutputError: the folder exists, or cannot be written.
    """
    model.check_original("exported")
    if form not in get_args(Format):
        raise ConfigError(f"format is {str(form)[:40]!r}; give one of {', '.join(get_args(Format))}")
    if not isinstance(model, TNet if parts else (TNet, Saccader)):
        what = "in steps" if parts else "with its looks unrolled"
        problem = f"the model is {model.config.title}, which cannot be exported {what}"
        raise ConfigError(f"{problem}; TNets, plain networks and Saccader (without --parts) can")
    if model.get_buffer("mean").device.type != "cpu":
        raise ConfigError("the model is on another device than the CPU; move it there with model.cpu()")
    config, was_training, chosen = model.config, model.training, model.config.resolve_looks(looks)
    if parts:
        if form != "onnx":
            raise ConfigError(f"parts are ONNX files, not {form}; OpenVINO reads them too: omit --format")
        check_parts(cast(TNet, model), chosen)
    check_opset(opset)
    require(*({"onnx": ["onnx"], "openvino": ["onnx", "openvino"], "torch-export": []}[form]))
    check_new_folder(Path(out), overwrite=overwrite)
    size_hw = size_hw or default_size(config)
    model.eval()
    try:
        with atomic_folder(out) as folder, torch.no_grad():
            if parts:
                metadata, difference = _write_parts(cast(TNet, model), folder, chosen, size_hw, opset)
            else:
                metadata, difference = _write_whole(model, folder, form, chosen, size_hw, opset)
            text = json.dumps({**metadata, "difference": difference, "tolerance": TOLERANCE}, indent=2)
            (folder / METADATA_NAME).write_text(text + "\n", encoding="utf-8")
            if recipe is not None and parts:
                shutil.copyfile(recipe, folder / "recipe.yaml")
            files = tuple(sorted(path.name for path in folder.iterdir()))
    finally:
        model.train(was_training)
    return Exported(Path(out), files, size_hw, chosen, difference)


def default_size(config: ModelConfig) -> tuple[int, int]:
    """Return the size of an image whose last level has as many pixels as a glimpse."""
    side = config.needed_px
    if isinstance(config, TNetConfig):
        side = round(config.region_px / config.grid.cell_extent ** (config.levels - 1))
    return side, side


def _write_whole(
    model: Model, folder: Path, form: Format, looks: tuple[int, ...], size_hw: tuple[int, int], opset: int
) -> tuple[Metadata, float]:
    images = example_images(model.config.in_channels, size_hw)
    unroll = FixedLooks if isinstance(model, TNet) else FixedSaccader
    unrolled = unroll(cast(Any, model), looks, size_hw).eval()
    program = trace(unrolled, {"image": images}, {"image": {0: "batch"}})
    size = f"{size_hw[0]}, {size_hw[1]}"
    metadata = describe_export(
        model.config, form, looks, kind="whole", image_size_hw=list(size_hw), opset=opset,
        inputs={"image": f"uint8 [batch, {model.config.in_channels}, {size}]"},
        outputs=OUTPUTS,
    )  # fmt: skip
    path = folder / _NAMES[form]
    if form == "torch-export":
        return metadata, compare(model, save_program(program, path, METADATA_NAME, metadata), images, looks)
    target = path if form == "onnx" else folder / _NAMES["onnx"]
    write_onnx(program, target, list(OUTPUTS), opset, metadata)
    if form == "openvino":
        _to_openvino(target, path, metadata)
        target.unlink()
        del metadata["opset"]
    return metadata, compare(model, open_session(path, form), images, looks)


def _write_parts(
    model: TNet, folder: Path, looks: tuple[int, ...], size_hw: tuple[int, int], opset: int
) -> tuple[Metadata, float]:
    config, grid, regions, n = model.config, model.grid, 3, 4
    has_norms = model.population_norms is not None and model.population_norms.norms
    has_two = has_norms or model.look_backbone is not None or config.region_px != config.base_px
    names = {SEE_WHOLE: 0, SEE_REGION: 1} if has_two else {SEE: 0}
    metadata = describe_export(config, "onnx", looks, kind="parts", opset=opset, see=list(names))
    given = _glimpses(config, regions, 0)
    for name, level in names.items():
        views = _glimpses(config, regions, level)
        program = trace(See(model, level).eval(), views, _rows(views, "regions"))
        write_onnx(program, folder / name, SEE_OUTPUTS, opset, metadata)
    feature, pooled, cell_map = See(model, 0)(**given)
    y_spans, x_spans = (torch.rand(regions, count, 2).sort(dim=2).values for count in (grid.rows, grid.cols))
    given = {"cell_map": cell_map, "pooled": pooled, "y_spans": y_spans, "x_spans": x_spans}
    program = trace(Locate(model).eval(), given, _rows(given, "regions"))
    write_onnx(program, folder / LOCATE, LOCATE_OUTPUTS, opset, metadata)
    features, seen = feature[:, None].repeat(1, n, 1), torch.ones(regions, n, dtype=torch.bool)
    given, dynamic = {"features": features, "seen": seen}, {0: "batch", 1: "n"}
    axes: dict[str, dict[int, str]] = {"features": dynamic, "seen": dynamic}
    if model.placed is not None:
        given |= {"boxes": torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(regions, n, 1), "cell_map": cell_map}
        axes |= {"boxes": dynamic, "cell_map": {0: "batch"}}
    write_onnx(trace(Answer(model).eval(), given, axes), folder / ANSWER, ANSWER_OUTPUTS, opset, metadata)
    # The engine reads the metadata.
    (folder / METADATA_NAME).write_text(json.dumps(metadata), encoding="utf-8")
    engine, images = EngineTNet(folder), example_images(config.in_channels, size_hw)

    def run(image: Tensor) -> dict[str, Tensor]:
        output = engine(prepared(model, image), looks, "topk")
        return {"logits": output.logits, "boxes": _boxes(output)}

    return metadata, compare(model, run, images, looks, "topk")


def _glimpses(config: TNetConfig, regions: int, level: int) -> dict[str, Tensor]:
    side = config.region_px if level else config.base_px
    return {"pixels": torch.rand(regions, config.in_channels, side, side), "position": torch.rand(regions, 3)}


def _rows(given: Mapping[str, Tensor], name: str) -> dict[str, dict[int, str]]:
    return {key: {0: name} for key in given}


def _to_openvino(source: Path, target: Path, metadata: Metadata) -> None:
    import openvino

    try:
        converted = openvino.convert_model(str(source))
        for key, value in metadata.items():
            converted.set_rt_info(json.dumps(value), ["tnet", key])
        openvino.save_model(converted, str(target), compress_to_fp16=False)
    except Exception as error:  # the library's own types are not public
        raise ExportError(f"OpenVINO cannot convert the model ({first_line(error)}); use --format onnx") from None


def example_images(channels: int, size_hw: tuple[int, int]) -> UInt8[Tensor, "3 channels height width"]:
    """Return images to trace and verify with: two of noise at several scales, like photographs, and waves.

    White noise would not do: it can drive a network so far from what it knows that PyTorch's own rounding errors show.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size_hw
    noise = 0.1 * torch.rand(2, channels, height, width, generator=generator)
    for count in (3, 8, 21):
        coarse = torch.rand(2, channels, min(count, height), min(count, width), generator=generator)
        rows, cols = torch.arange(height) * coarse.shape[2] // height, torch.arange(width) * coarse.shape[3] // width
        noise += 0.3 * coarse[:, :, rows][:, :, :, cols]
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.stack([0.4 + 0.2 * (9 * y + c).sin() + 0.2 * (14 * x * y - c).cos() for c in range(channels)])
    waves[:, height // 5 : height // 3, width // 2 : width * 2 // 3] = 1
    return (torch.cat([noise, waves[None]]) * 255).round().to(torch.uint8)


def prepared(model: Model, image: UInt8[Tensor, "batch channels h w"]) -> Num[Tensor, "batch channels h w"]:
    """Return raw images, or normalised ones if the export does not round the pixels of glimpses."""
    if is_reproduced(model.config.resize):
        return image
    return (image.float() / 255 - model.get_buffer("mean")) / model.get_buffer("std")


def compare(model: Model, run: Run, images: Tensor, looks: tuple[int, ...], policy: str | None = None) -> float:
    """Return how far the logits of an export are from the model's; raise ExportError if too far, or for other boxes."""
    difference = 0.0
    for batch in (images, images[-1:]):
        expected, actual = model(prepared(model, batch), looks, policy), run(image=batch)
        if not torch.equal(actual["boxes"].long(), _boxes(expected)):
            wrong = int((actual["boxes"].long() != _boxes(expected)).any(dim=2).sum())
            problem = (
                f"the export looked elsewhere than the model in {wrong} of {_boxes(expected)[..., 0].numel()} regions"
            )
            raise ExportError(f"{problem}, so nothing was written; scores may be nearly equal: is the model trained")
        error = float((actual["logits"] - expected.logits).abs().max() / expected.logits.abs().max())
        if not error <= TOLERANCE:
            problem = f"the export's logits differ from the model's by {error:.1e} of the largest"
            raise ExportError(
                f"{problem}, more than {TOLERANCE:.0e}, so nothing was written; try another format or opset"
            )
        difference = max(difference, error)
    return difference


def _boxes(output: ModelOutput) -> Int[Tensor, "batch n 4"]:
    """Return the boxes of each image, of which all have the same number, in the order seen."""
    order = output.regions.image.argsort(stable=True)
    return output.regions.box_l0_yxyx[order].reshape(output.logits.shape[0], -1, 4)
