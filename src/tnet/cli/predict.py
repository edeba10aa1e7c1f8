"""``tnet predict``: labels, probabilities and regions for images."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tnet.cli import common
from tnet.errors import ConfigError

if TYPE_CHECKING:
    from tnet.inference.records import Prediction
    from tnet.models.base import Model
    from tnet.models.tnet import TNet
    from tnet.traversal import BestFirst

Aspect = Literal["squeeze", "keep"]
EngineName = Literal["onnx", "openvino", "ray"]
IMAGES_HELP = (
    "Images, folders of images (searched recursively), or manifests: a table (.csv, .parquet) with a column 'path', or "
    "a .txt file with one path per line; relative paths start from the manifest's folder."
)
_OUT_HELP = (
    "Table to write. .csv: columns path, label, probability, top5 and regions (both JSON), error. .jsonl: one JSON "
    "object per image. A folder: a job of any number of images, written in parts (parts/*.parquet); failed images are "
    "rows with their error, and the same command goes on after an interruption. "
    "[default: one line per image on standard output]"
)
_BUDGET_HELP = (
    "Mean looks per image, such as 2.5, or mean multiply-adds, such as 900M or 1.2G: easy images take fewer, hard ones "
    "more. Needs a model calibrated by `tnet calibrate`."
)
_AT_LEAST_HELP = "Look until this accuracy (0 to 1), as measured by `tnet calibrate`, is reached."
_LEVELS_HELP = (
    "Levels for the search, including the whole image; more than in training show larger images at full resolution. "
    "Every look goes to the most promising place on any level, and --looks is the number per image."
)
_ASPECT_HELP = (
    "How images that are 1.5 times as long as wide, or longer, are seen whole: squeeze, as a square; or keep, as up to "
    "16 squares side by side, each searched like an image. The looks are chosen as with --levels."
)
_SHARD_HELP = (
    "With a folder as --out: this process predicts the i-th of n shares of the parts, such as 2/8. Under torchrun each "
    "process takes its own. [default: all]"
)
_PART_HELP = "With a folder as --out: images per part. What a stop interrupts is at most the part under way."
_RETRY_HELP = "With a folder as --out: also predict the images again that failed before."
_ENGINE_HELP = (
    "What runs the network. onnx (ONNX Runtime) and openvino, on the CPU: the model is then a folder written by `tnet "
    "export --parts`. ray: PyTorch in processes of a Ray cluster, for a folder as --out; --workers is their number, by "
    "default one per GPU or core. [default: PyTorch, or onnx for such a folder]"
)
_RAY_HELP = (
    "With --engine ray: address of the cluster that this machine belongs to. Its nodes need tnet, and this working "
    "directory under the same path. [default: a cluster on this machine alone, which ends with the command]"
)
_MAX_MS_HELP = "Milliseconds per image for all looks, after reading; images are then searched one by one."


def predict(
    model: common.ModelArgument,
    images: Annotated[list[Path], typer.Argument(help=IMAGES_HELP)],
    looks: common.LooksOption = None,
    policy: common.PolicyOption = None,
    budget: Annotated[str | None, typer.Option(help=_BUDGET_HELP)] = None,
    at_least: Annotated[float | None, typer.Option(metavar="SHARE", help=_AT_LEAST_HELP)] = None,
    max_ms: Annotated[float | None, typer.Option(metavar="MS", help=_MAX_MS_HELP)] = None,
    levels: Annotated[int | None, typer.Option(min=2, max=16, help=_LEVELS_HELP)] = None,
    aspect: Annotated[Aspect | None, typer.Option(help=_ASPECT_HELP, show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help=_OUT_HELP)] = None,
    batch_size: common.BatchSizeOption = 8,
    workers: common.WorkersOption = 0,
    device: common.DeviceOption = "auto",
    precision: common.PrecisionOption = "fp32",
    compile: common.CompileOption = False,
    engine: Annotated[EngineName | None, typer.Option(help=_ENGINE_HELP, show_default=False)] = None,
    ray_address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help=_RAY_HELP, show_default=False)] = None,
    max_side_px: common.MaxSideOption = None,
    preprocess: common.PreprocessOption = None,
    read: common.ReadOption = None,
    bands: common.BandsOption = None,
    value_range: common.RangeOption = None,
    allow_small: common.SmallOption = False,
    skip_unreadable: common.SkipOption = False,
    part_rows: Annotated[int, typer.Option(min=1, max=1_000_000, help=_PART_HELP)] = 500,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help=_SHARD_HELP)] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help=_RETRY_HELP)] = False,
    overwrite: common.OverwriteOption = False,
    progress: common.ProgressOption = True,
) -> None:
    """Classify images, and show where the model looked.

    Boxes are (y0, x0, y1, x1) in pixels of the image as stored, upright, end exclusive; they may reach past the edge by
    a few pixels. Regions are numbered by the probability of their location: 1 is the most probable, 2.1 the most
    probable one inside region 2.
    """
    chosen = common.parse_looks(looks) if looks is not None else None

    from tnet.export import EngineTNet, is_export
    from tnet.inference.inputs import find_inputs
    from tnet.inference.predictor import iter_predictions
    from tnet.inference.records import Unreadable
    from tnet.inference.write import FILE_SUFFIXES, check_output, prediction_line, write_predictions
    from tnet.models.io import load_for_inference
    from tnet.text import on_one_line

    is_job = out is not None and (not out.suffix or (out.is_dir() and out.suffix.lower() not in FILE_SUFFIXES))
    if not is_job and (shard is not None or retry_failed):
        raise typer.BadParameter("--shard and --retry-failed are for jobs; give a folder as --out")
    if is_job and overwrite:
        raise typer.BadParameter("--overwrite does not apply to the folder of a job; delete the folder, or omit it")
    if (engine == "ray" and not is_job) or (engine != "ray" and ray_address is not None):
        raise typer.BadParameter("--ray-address is for --engine ray, and that for jobs; give a folder as --out")
    if (engine is not None or is_export(model)) and (precision != "fp32" or compile):
        raise typer.BadParameter("--precision and --compile are for PyTorch without --engine; omit them")
    share = _shard(shard) if is_job else (1, 1)
    paths = find_inputs(images, check_exists=not skip_unreadable and not is_job)
    inputs = [*paths, *(path for path in images if not path.is_dir())]
    if out is not None and not is_job:
        check_output(out, inputs=inputs, overwrite=overwrite)
    data = common.data_of(common.recipe_of(model))
    # Lines that appear on a terminal are progress enough.
    progress = progress and (out is not None or not sys.stdout.isatty())
    if engine == "ray":
        if is_export(model):
            raise ConfigError(f"{model} is an exported model, but --engine ray runs PyTorch; give the model itself")
        network: Model = load_for_inference(model)
    elif engine is not None or is_export(model):
        if device not in ("auto", "cpu"):
            raise ConfigError(f"device is {device!r}, but other engines than PyTorch run on the CPU; omit --device")
        network = EngineTNet(model, engine or "onnx")
        device = "cpu"
    else:
        device = common.pick_device(_own_device(device))
        network = load_for_inference(model, device=device, precision=precision, compiled=compile)
    search = None
    is_limited = budget is not None or at_least is not None or max_ms is not None
    if is_limited or levels is not None or aspect is not None:
        if policy is not None or (is_limited and chosen is not None):
            raise typer.BadParameter("--budget, --at-least and --max-ms choose the looks; omit --looks and --policy")
        search = _search(network, model, budget, at_least, max_ms, chosen)
        search = replace(search, levels=levels or search.levels, aspect=aspect or search.aspect)
        chosen = None
        batch_size = batch_size if max_ms is None else 1
    options: dict[str, Any] = {
        "looks": chosen, "policy": policy.value if policy else None, "search": search, "batch_size": batch_size,
        "allow_small": allow_small,
        "read": common.parse_reading(data, read, bands, value_range, max_side_px, preprocess),
    }  # fmt: skip
    running: dict[str, Any] = {"workers": workers, "device": device, "progress": progress}
    if is_job:
        assert out is not None
        job: dict[str, Any] = {"part_rows": part_rows, "shard": share, "retry_failed": retry_failed}
        if engine == "ray":
            from tnet.inference.cluster import ray_engine

            engine, job["engine"] = None, ray_engine(ray_address)
        _run_job(out, network, model, paths, options, engine, precision, **running, **job)
        return
    predictions = iter_predictions(network, paths, **options, **running, skip_unreadable=skip_unreadable)
    skipped = 0

    def report_skipped() -> Iterator[Prediction | Unreadable]:
        nonlocal skipped
        for item in predictions:
            if isinstance(item, Unreadable):
                skipped += 1
                common.say(f"skipped: {on_one_line(item.error)}", err=True)
            yield item

    if out is None:
        for item in report_skipped():
            if not isinstance(item, Unreadable):
                common.say(prediction_line(item))
    else:
        count = write_predictions(report_skipped(), out, inputs=inputs, overwrite=overwrite)
        common.say(f"written: {out} ({count} images, {skipped} skipped)", err=True)


def _shard(text: str | None) -> tuple[int, int]:
    """Return number and count of the shard that is asked for, or that torchrun gives this process."""
    if text is None:
        return int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1))
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a shard; give its number and how many there are, such as 2/8")
    return int(match[1]), int(match[2])


def _own_device(name: str) -> str:
    """Return the GPU of this process under torchrun instead of ``auto``."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if name == "auto" and rank is not None and torch.cuda.is_available() else name


def _run_job(
    out: Path,
    network: Model,
    folder: Path,
    paths: list[Path],
    options: dict[str, Any],
    runtime: EngineName | None,
    precision: common.PrecisionName,
    **running: Any,
) -> None:
    from tnet.export import export_digest, is_export
    from tnet.inference.job import predict_into
    from tnet.models.io import model_digest

    settings = {name: repr(value) for name, value in {**options, "engine": runtime}.items()}
    if precision != "fp32":
        settings["precision"] = precision
    digest = export_digest(folder) if is_export(folder) else model_digest(folder)
    report = predict_into(out, network, paths, model_hash=digest, settings=settings, **options, **running)
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.errors.items())
    failed = f"{report.failed} failed ({kinds})" if report.failed else "none failed"
    text = f"{out}: {report.predicted} of {report.images} images predicted, {failed}"
    if report.missing:
        text += f", {report.missing} not yet written by other shards"
    common.say(f"{text}; {report.new} now, {report.images_per_second:.3g} per second", err=True)


def _search(
    model: Model,
    folder: Path,
    budget: str | None,
    at_least: float | None,
    max_ms: float | None,
    looks: common.Looks | None,
) -> BestFirst:
    """Return the best-first search that keeps these limits; without any, of this number of looks."""
    from tnet.geometry import total_looks
    from tnet.traversal import BestFirst, TimeLimit

    model = common.searchable(model, folder)
    calibration, config = model.calibration, model.config
    if budget is None and at_least is None and max_ms is None:
        if isinstance(looks, tuple):
            raise typer.BadParameter("--levels and --aspect take one number of looks per image; give --looks 5")
        return BestFirst(total_looks(config.looks) if looks is None else looks, config.levels)
    if calibration is None:
        if budget is None and at_least is None and max_ms is not None:
            return BestFirst(2 * total_looks(config.looks), config.levels, stop=(TimeLimit(max_ms),))
        raise ConfigError(f"{folder} is not calibrated; run: tnet calibrate {folder}")
    mean_looks = None if budget is None else _mean_looks(model, budget)
    return calibration.search(mean_looks, at_least, max_ms, model.config.multilabel)


def _mean_looks(model: TNet, budget: str) -> float:
    """Convert a budget, in looks or in multiply-adds, to mean looks per image."""
    from tnet.evaluation.frontier import step_costs

    match = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([MG]?)\s*", budget)
    if match is None:
        raise typer.BadParameter(f"{budget!r} is not a budget; give mean looks such as 2.5, or multiply-adds as 900M")
    number = float(match[1])
    if not match[2]:
        return number
    costs = step_costs(model)
    whole, macs = sum(costs), number * {"M": 1e6, "G": 1e9}[match[2]]
    if macs <= whole:
        raise ConfigError(
            f"a budget of {budget} multiply-adds is not above the {whole:,} of the whole image alone; give more, or "
            "--looks 0"
        )
    return (macs - whole) / costs.region
