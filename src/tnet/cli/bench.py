"""``tnet bench``: time of a model on this machine, beside plain networks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer

from tnet.cli import common

EngineName = StrEnum("EngineName", ["eager", "torch", "onnx", "openvino"])
_MODEL_HELP = "Run directory, folder of a saved model, or model name (see tnet models), which then has random weights."
_SIZE_HELP = "Size of the images, such as 768x1024. [default: square, at which the last level shows full resolution]"
_ENGINE_HELP = (
    "Engine to time, repeatable: torch (prepared for inference, as in the command line), eager (PyTorch as it is), "
    "onnx, openvino. [default: torch, and those that are installed]"
)
_OUT_HELP = "Folder for bench.md, bench.csv and bench.png."


def bench(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)] = "tnet_mobilenetv2_100.own",
    looks: common.LooksListOption = None,
    image_size: Annotated[str | None, typer.Option(metavar="HEIGHTxWIDTH", help=_SIZE_HELP)] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Repeatable. [default: 1 and 16]")] = None,
    engine: Annotated[list[EngineName] | None, typer.Option(help=_ENGINE_HELP)] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes of each.")] = 7,
    device: common.DeviceOption = "auto",
    precision: common.PrecisionOption = "fp32",
    compile: common.CompileOption = False,
    out: Annotated[Path | None, typer.Option(help=_OUT_HELP)] = None,
    overwrite: common.OverwriteOption = False,
    progress: common.ProgressOption = True,
) -> None:
    """Time a model on this machine, at several numbers of looks, beside plain networks with its backbone.

    The plain networks see the whole image at the model's base resolution, at the resolution at which they cost as much
    as the model, and at full resolution. Reading and decoding of files is not included.
    """
    chosen = common.parse_looks_list(looks or [])
    size_hw = common.parse_image_size(image_size) if image_size is not None else None

    from importlib.util import find_spec

    from tnet.evaluation.bench import BenchEngine, bench_table, plot_bench
    from tnet.evaluation.bench import bench as measure
    from tnet.evaluation.report import write_csv
    from tnet.evaluation.resources import machine
    from tnet.export.write import default_size
    from tnet.files import check_outputs, write_text
    from tnet.models.io import load_model
    from tnet.models.registry import create_model

    network = load_model(model) if Path(model).is_dir() else create_model(model).eval()
    files = [] if out is None else [out / name for name in ("bench.md", "bench.csv", "bench.png")]
    check_outputs(files, inputs=[], overwrite=overwrite)
    needed = {"torch": (), "onnx": ("onnxruntime", "onnxscript"), "openvino": ("openvino", "onnxscript")}
    installed = [name for name, libraries in needed.items() if all(map(find_spec, libraries))]
    engines = cast("list[BenchEngine]", [item.value for item in engine] if engine else installed)
    rows, notes = measure(
        network, size_hw=size_hw, looks=chosen, batch_sizes=batch_size or (1, 16), engines=engines,
        rounds=rounds, device=common.pick_device(device), precision=precision, compiled=compile, progress=progress,
    )  # fmt: skip
    height, width = size_hw or default_size(network.config)
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    prepared = "" if precision == "fp32" and not compile else f" PyTorch in {precision}{', compiled' * compile}."
    text = (
        f"{network.config.line()}; images of {height} x {width} px\n\n{bench_table(rows)}\n"
        f"Median (middle half) of {rounds} rounds, interleaved within each engine.{prepared} {about}.\n"
    )
    text += "".join(f"- Not timed: {note}\n" for note in notes)
    common.say(text)
    if out is not None:
        write_text(files[0], f"# Time of a model\n\n{text}\n![bench.png](bench.png)\n")
        write_csv([vars(row) for row in rows], files[1])
        plot_bench(rows, files[2])
        common.say(f"written: {', '.join(map(str, files))}")
