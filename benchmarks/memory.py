"""Peak memory of one forward: at 4 looks against the size of the image, or beside a plain network on whole images.

Each size runs in fresh processes, which report their peak resident memory; the median of five is shown. The C library
is set to return freed blocks at once: otherwise the peak varies by tens of MiB with what it happens to keep.

    python benchmarks/memory.py [--model tnet_efficientnet_b0.fmow_448]
    python benchmarks/memory.py --whole [--model tnet_efficientnet_b0.fmow_896]

``--whole``: the model, as it comes, and its backbone on whole images of the same size, in PyTorch (prepared) and
OpenVINO; how far the peak rises above that with the model loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openvino
import torch

from tnet import create_model
from tnet.evaluation.memory import peak_bytes, reset_peak_bytes
from tnet.export import export_model
from tnet.export.runtime import compile_openvino
from tnet.export.write import default_size
from tnet.models.base import Model
from tnet.models.kind import build_model

SIZES_PX = (224, 896, 1792, 3584)
REPEATS = 5
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def measure(name: str, size_px: int, dtype: str) -> dict[str, float]:
    """Run one forward in this process; return MiB of the input and of the peak after the model was built."""
    torch.set_num_threads(1)
    model = create_model(name).eval()
    with torch.inference_mode():
        # The smallest image first, so that one-time allocations are part of the start.
        model(torch.zeros(1, 3, 224, 224), looks=4)
        start = peak_bytes() / 2**20
        if dtype == "uint8":
            images = torch.full((1, 3, size_px, size_px), 100, dtype=torch.uint8)
        else:
            images = torch.full((1, 3, size_px, size_px), 0.1)
        begin = time.perf_counter()
        model(images, looks=4)
        seconds = time.perf_counter() - begin
    peak = peak_bytes() / 2**20
    return {
        "input_mib": images.numel() * images.element_size() / 2**20,
        "start_mib": start,
        "peak_mib": peak,
        "seconds": seconds,
    }


def system_of(name: str, system: str) -> Model:
    """Return a registered TNet, or the plain network on whole images of its size."""
    model = create_model(name).eval()
    if system == "TNet":
        return model
    return build_model(model.config.plain(default_size(model.config)[0]).without_weights()).eval()


def measure_system(name: str, system: str, engine: str, batch: int, folder: Path) -> float:
    """Run one forward in this process; return MiB above those with the model loaded."""
    model = system_of(name, system)
    shape = (batch, model.config.in_channels, *default_size(model.config))
    images = torch.randint(256, shape, dtype=torch.uint8)
    with torch.inference_mode():
        if engine == "openvino":
            # Not by open_session, which compiles in the first pass: that is loading, whose memory is not counted.
            exported = openvino.Core().read_model(str(folder / system / "model.xml"))
            compiled = compile_openvino(exported, {"image": openvino.PartialShape(shape)})
            before = reset_peak_bytes()
            compiled({0: images.numpy()}, share_inputs=True)
        else:
            model = model.prepare_for_inference()
            before = reset_peak_bytes()
            model(images)
    return (peak_bytes() - before) / 2**20


def beside_whole(name: str) -> None:
    """Print a table of a TNet and the plain network."""
    size_hw, systems = default_size(create_model(name).config), ("TNet", "plain network")
    print("| engine | batch | TNet, MiB | plain network, MiB | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for system in systems:
            export_model(system_of(name, system), Path(folder, system), "openvino", size_hw=size_hw)

        def run(system: str, engine: str, batch: int) -> float:
            command = [sys.executable, __file__, "--model", name, "--folder", folder, "--system", system, engine]
            done = subprocess.run(
                [*command, str(batch)], check=True, capture_output=True, text=True, env={**os.environ, **_GIVE_BACK}
            )
            return float(done.stdout.splitlines()[-1])

        for engine in ("torch", "openvino"):
            for batch in (1, 16):
                tnet, plain = (statistics.median(run(system, engine, batch) for _ in range(3)) for system in systems)
                print(f"| {engine} | {batch} | {tnet:.0f} | {plain:.0f} | {tnet / plain:.2f} |", flush=True)
    print(f"\n{name}; median of 3 processes; {platform.machine()}, {time.strftime('%Y-%m-%d')}.")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--whole", action="store_true", help="beside a plain network on whole images")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--system", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, metavar=("SIZE", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system:
        system, engine, batch = arguments.system
        print(measure_system(arguments.model, system, engine, int(batch), arguments.folder))
        return
    if arguments.whole:
        beside_whole(arguments.model or "tnet_efficientnet_b0.fmow_896")
        return
    arguments.model = arguments.model or "tnet_efficientnet_b0.fmow_448"
    if arguments.one:
        print(json.dumps(measure(arguments.model, int(arguments.one[0]), arguments.one[1])))
        return
    print("| image | dtype | input MiB | peak MiB (range) | peak over 896 px's | input over 896 px's | time s |")
    print("|---|---|---|---|---|---|---|")
    for dtype in ("float32", "uint8"):
        rows = {}
        for size_px in SIZES_PX:
            command = [sys.executable, __file__, "--model", arguments.model, "--one", str(size_px), dtype]
            runs = []
            for _ in range(REPEATS):
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, env={**os.environ, **_GIVE_BACK}
                )
                runs.append(json.loads(done.stdout.splitlines()[-1]))
            rows[size_px] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows[size_px]["spread_mib"] = max(run["peak_mib"] for run in runs) - min(run["peak_mib"] for run in runs)
        for size_px, row in rows.items():
            more = row["peak_mib"] - rows[896]["peak_mib"]
            more_input = row["input_mib"] - rows[896]["input_mib"]
            print(
                f"| {size_px} px | {dtype} | {row['input_mib']:.1f} | {row['peak_mib']:.1f} "
                f"({row['spread_mib']:.1f}) | {more:+.1f} | "
                f"{more_input:+.1f} | {row['seconds']:.2f} |"
            )
    print(f"\n{arguments.model}, 1 image, 4 looks, 1 thread; {platform.machine()}, {time.strftime('%Y-%m-%d')}.")


if __name__ == "__main__":
    main()
