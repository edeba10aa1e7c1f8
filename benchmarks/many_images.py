"""A job of very many images: memory, rate, overhead per row, and how long a finished job takes to say so.

    python benchmarks/many_images.py --rows 1000000

Predicts one small picture again and again, from a manifest, with a tiny untrained model, so that what is measured is
everything but the network. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tnet


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


def main() -> None:
    """Make the manifest, predict it, and predict it again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--part-rows", type=int, default=5000)
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
        first_s, memory = run(given)
        again_s, _ = run(given)
        third = len(memory) // 3
        size_mb = sum(path.stat().st_size for path in (folder / "out/parts").iterdir()) / 2**20
    table = {
        "rows": f"{arguments.rows:,}",
        "s": f"{first_s:.0f}",
        "rows per second": f"{arguments.rows / first_s:.0f}",
        "ms per row": f"{1000 * first_s / arguments.rows:.2f}",
        "of it the network": f"{network_ms:.2f}",
        "MB after a third": f"{max(memory[: third + 1]):.0f}",
        "MB at the end": f"{max(memory[-third - 1 :]):.0f}",
        "again, s": f"{again_s:.1f}",
        "parts, MB": f"{size_mb:.1f}",
    }
    print(f"| {' | '.join(table)} |\n{'|---' * len(table)}|\n| {' | '.join(table.values())} |")


if __name__ == "__main__":
    main()
