"""Time, memory and bytes read of a prediction against the size of the image, with the same number of looks.

    python benchmarks/scale.py                       # 1k to 100k pixels per side; files in a temporary folder
    python benchmarks/scale.py --sides 1024 4096     # fewer sizes

Writes a tiled TIFF pyramid of each size, then predicts each in a separate process under a memory limit: once to warm
up, then repeatedly, with the file closed in between. The same model is used for all: 4 levels of 3 x 3 cells, 2
regions, 1 in each of these and 1 in each of those. Its weights are random; time and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TILE_PX = 256
LOOKS = (2, 1, 1)
SIDES = (1_000, 4_000, 16_000, 64_000, 100_000)


def encoded_tiles(variants: int = 16) -> list[bytes]:
    """Return deflated tiles: a flat colour with some blobs, so that a large image stays a small file."""
    rng = np.random.default_rng(0)
    tiles = []
    for _ in range(variants):
        tile = np.full((TILE_PX, TILE_PX, 3), rng.integers(100, 200, 3), np.uint8)
        for _ in range(6):
            y, x, side = rng.integers(0, TILE_PX - 40), rng.integers(0, TILE_PX - 40), rng.integers(5, 40)
            tile[y : y + side, x : x + side] = rng.integers(0, 256, 3)
        tiles.append(zlib.compress(tile.tobytes(), 6))
    return tiles


def write_tiled(path: Path, side_px: int) -> None:
    """Write a TIFF pyramid of that size, tile by tile."""
    from tifffile import TiffWriter

    tiles = encoded_tiles()
    sides = [side_px]
    while sides[-1] > TILE_PX:
        sides.append((sides[-1] + 1) // 2)

    def content(count: int, level: int) -> Iterator[bytes]:
        for index in range(count):
            yield tiles[(index * 7 + index // 97 + level) % len(tiles)]

    with TiffWriter(path, bigtiff=True) as file:
        for level, side in enumerate(sides):
            across = -(-side // TILE_PX)
            file.write(
                content(across * across, level), shape=(side, side, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
                compression="adobe_deflate", photometric="rgb", subfiletype=1 if level else 0, metadata=None,
            )  # fmt: skip


def measure(path: Path, repeats: int, limit_mib: int) -> dict[str, float]:
    """Predict one file, in a separate process."""
    import torch

    import tnet
    from tnet.evaluation.memory import peak_bytes
    from tnet.inference.predictor import iter_predictions
    from tnet.scenes.reading import ReadOptions

    torch.manual_seed(0)
    torch.set_num_threads(2)
    grid = tnet.Grid(3, 3, 0.5)
    model = tnet.create_model("tnet_mobilenetv2_100.own", num_classes=10, levels=4, grid=grid, looks=LOOKS).eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, 2048, 2048, dtype=torch.uint8))  # kernels are chosen and memory is set up
    before = peak_bytes() / 2**20
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit_mib * 2**20,) * 2)
    times = []
    for _ in range(repeats + 1):
        scene = tnet.open_scene(path)
        scene.close()
        start = time.perf_counter()
        list(iter_predictions(model, [path], progress=False, read=ReadOptions("lazy")))
        times.append(time.perf_counter() - start)
    scene = tnet.open_scene(path)
    scene.close()
    scene = tnet.open_scene(path)
    start_bytes, start_tiles = scene.stats.bytes_read, scene.stats.tiles_read
    with torch.inference_mode():
        model(scene)
    return {
        "median_s": statistics.median(times[1:]), "min_s": min(times[1:]), "max_s": max(times[1:]),
        "peak_mib": peak_bytes() / 2**20, "before_mib": before,
        "bytes": scene.stats.bytes_read - start_bytes, "tiles": scene.stats.tiles_read - start_tiles,
    }  # fmt: skip


def main() -> None:
    """Write the files, measure each, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="processes a size, taken in turn")
    parser.add_argument("--limit-mib", type=int, default=1024, help="address space over that of the loaded model")
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.repeats, arguments.limit_mib)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[int, list[dict[str, float]]] = {side: [] for side in arguments.sides}
        for side in found:
            if not (folder / f"{side}.tif").exists():
                write_tiled(folder / f"{side}.tif", side)
        for _ in range(arguments.rounds):
            for side, rows in found.items():
                command = [sys.executable, __file__, "--one", str(folder / f"{side}.tif"), "--repeats",
                           str(arguments.repeats), "--limit-mib", str(arguments.limit_mib)]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{side}: {rows[-1]}", file=sys.stderr)
        print("| px a side | file MiB | s (min to max) | of smallest | peak MiB | of smallest | over the loaded model "
              "| MiB read | tiles |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        first = found[min(found)]
        for side, rows in found.items():
            seconds, peak = statistics.median(r["median_s"] for r in rows), max(r["peak_mib"] for r in rows)
            spread = f"{min(r['min_s'] for r in rows):.2f} to {max(r['max_s'] for r in rows):.2f}"
            ratio = seconds / statistics.median(r["median_s"] for r in first)
            grown = max(r["peak_mib"] - r["before_mib"] for r in rows)
            print(
                f"| {side:,} | {(folder / f'{side}.tif').stat().st_size / 2**20:.1f} | {seconds:.2f} ({spread}) | "
                f"{ratio:.2f} | {peak:.0f} | {peak / max(r['peak_mib'] for r in first):.2f} | {grown:.0f} | "
                f"{rows[0]['bytes'] / 2**20:.2f} | {rows[0]['tiles']:.0f} |"
            )


if __name__ == "__main__":
    main()
