"""Would another library decode JPEG files faster than Pillow does here?

Times decoding to a tensor of (3, height, width), libraries in turn, on one thread. Pixels are compared.

    python benchmarks/jpeg.py FOLDER [--images 12] [--rounds 7]
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import torch
from torch import Tensor
from torchvision.io import decode_jpeg, read_file

from tnet.evaluation.report import markdown_table
from tnet.scenes.decode import load_image


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="searched for .jpg files")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(options.folder.rglob("*.jpg"))[: options.images]
    if not paths:
        parser.error(f"{options.folder} has no .jpg files")
    ways: dict[str, Callable[[Path], Tensor]] = {
        "Pillow, as tnet reads them": load_image,
        "torchvision": lambda path: decode_jpeg(read_file(str(path))).contiguous(),
        "torchvision, pixels left in the order height, width, channel": lambda path: decode_jpeg(read_file(str(path))),
        "imagecodecs": lambda path: _planes(torch.from_numpy(imagecodecs.jpeg8_decode(path.read_bytes()))),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    most = dict.fromkeys(ways, 0)
    for _ in range(options.rounds):
        for path in paths:
            wanted = load_image(path).int()
            for name, way in ways.items():
                start = time.perf_counter()
                pixels = way(path)
                times[name].append(1000 * (time.perf_counter() - start))
                most[name] = max(most[name], int((pixels.int() - wanted).abs().max()))
    body = []
    for name, mine in times.items():
        low, middle, high = statistics.quantiles(mine, n=4, method="inclusive")
        body.append([name, f"{middle:.1f} ({low:.1f} to {high:.1f})", str(most[name])])
    print(markdown_table(["library", "ms per image", "largest difference of pixels"], body))
    print(
        f"Median (middle half) of {options.rounds} rounds of {len(paths)} images. {platform.machine()}, 1 thread, "
        f"PyTorch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}."
    )


def _planes(pixels: Tensor) -> Tensor:
    return pixels.permute(2, 0, 1).contiguous()


if __name__ == "__main__":
    main()
