"""A job of very many images: memory, rate, overhead per row, and how long a finished job takes to say so.

    python benchmarks/many_images.py --rows 1000000

Predicts one small picture again and again, from a manifest, with a tiny untrained model, so that what is measured is
everything but the network. ``--no-network`` repeats the first prediction instead of reading and predicting, which shows
what becomes of a large job in a short time. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tnet
from tnet.cli.common import data_of, parse_reading
from tnet.inference import Prediction, Unreadable, find_inputs, iter_predictions
from tnet.inference.job import predict_into
from tnet.models.io import model_digest


def run(arguments: list[str]) -> tuple[float, list[float]]:
    """Run ``tnet predict`` and return its seconds, and its resident memory in MB over time."""
    begin, memory = time.monotonic(), []
    with subprocess.Popen([sys.executable, "-m", "tnet", "predict", *arguments]) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            memory += [int(found) / 1024 for found in re.findall(r"VmRSS:\s+(\d+)", status)]
            time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - begin, memory


def repeat_one(folder: Path, out: Path, rows: int, part_rows: int, batch_size: int) -> tuple[float, list[float]]:
    """Write the parts of ``tnet predict`` without a network, and return as :func:`run` does, memory per 1 % of rows."""
    images = find_inputs([folder / "manifest.txt"])
    model, memory = tnet.load_model(folder / "model"), []
    (first,) = iter_predictions(model, images[:1], progress=False)

    def engine(model: tnet.TNet, images: list[Path], **_: object) -> Iterator[Prediction | Unreadable]:
        for row in range(len(images)):
            if row % (len(images) // 100) == 0:
                memory.append(int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024)
            yield first

    options = {"looks": None, "policy": None, "search": None, "batch_size": batch_size, "allow_small": False}
    options |= {"read": parse_reading(data_of(None), None, None, None, None, None), "engine": None}
    settings = {name: repr(value) for name, value in options.items()}
    digest, begin = model_digest(folder / "model"), time.monotonic()
    predict_into(out, model, images, model_hash=digest, settings=settings, part_rows=part_rows, engine=engine)
    return time.monotonic() - begin, memory


def main() -> None:
    """Make the manifest, predict it, and predict it again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--part-rows", type=int, default=5000)
    parser.add_argument("--network", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        picture = np.random.default_rng(0).integers(256, size=(48, 48), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "picture.png")
        (folder / "manifest.txt").write_text("picture.png\n" * arguments.rows)
        torch.manual_seed(0)
        config = tnet.TNetConfig(
            backbone=tnet.BackboneConfig("test_resnet"), num_classes=2, in_channels=1, base_px=32, looks=(1,),
            grid=tnet.Grid(2, 2, 0.6),
        )  # fmt: skip
        model = tnet.TNet(config).eval()
        tnet.save_model(model, folder / "model")
        images = torch.randint(256, (arguments.batch_size, 1, 48, 48), dtype=torch.uint8)
        with torch.inference_mode():
            model(images)
            begin = time.monotonic()
            for _ in range(20):
                model(images)
            network_ms = 1000 * (time.monotonic() - begin) / 20 / arguments.batch_size
        given = [str(folder / "model"), str(folder / "manifest.txt"), "--out", str(folder / "out"), "--device", "cpu"]
        given += ["--batch-size", str(arguments.batch_size), "--workers", str(arguments.workers)]
        given += ["--part-rows", str(arguments.part_rows)]
        if arguments.network:
            first_s, memory = run(given)
        else:
            sizes = arguments.rows, arguments.part_rows, arguments.batch_size
            first_s, memory = repeat_one(folder, folder / "out", *sizes)
        again_s, _ = run(given)
        third = len(memory) // 3
        size_mb = sum(path.stat().st_size for path in (folder / "out/parts").iterdir()) / 2**20
    table = {
        "rows": f"{arguments.rows:,}",
        "s": f"{first_s:.0f}",
        "rows per second": f"{arguments.rows / first_s:.0f}",
        "ms per row": f"{1000 * first_s / arguments.rows:.2f}",
        "of it the network": f"{network_ms if arguments.network else 0:.2f}",
        "MB after a third": f"{max(memory[: third + 1]):.0f}",
        "MB at the end": f"{max(memory[-third - 1 :]):.0f}",
        "again, s": f"{again_s:.1f}",
        "parts, MB": f"{size_mb:.1f}",
    }
    print(f"| {' | '.join(table)} |\n{'|---' * len(table)}|\n| {' | '.join(table.values())} |")


if __name__ == "__main__":
    main()
