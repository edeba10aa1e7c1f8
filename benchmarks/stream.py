"""Throughput of adaptive inference: a stream with full batches of glimpses, and batches that wait for the slowest.

    python benchmarks/stream.py [--images 64] [--batch 16] [--repeats 7] [--device cpu] [--profile]

The queue mixes small and large images in memory that need 0 to 11 looks each; a rule stops each image at its number, so
that nothing has to be trained. Three ways of searching it are measured alternately: the stream
(``tnet.models.engine.traverse_all``, which ``tnet.predict`` uses); the same batches, from which images that are done
drop out one by one; and batches in which every image takes as many looks as the slowest. The answers of the first two
are compared with those of one image at a time.
"""

from __future__ import annotations

import argparse
import cProfile
import datetime
import platform
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import tnet
from tnet.evaluation.report import markdown_table
from tnet.models.engine import traverse_all
from tnet.threads import usable_cpus
from tnet.traversal import StoppingRule, Trail

MOST_LOOKS = 11
SIDES_PX = (160, 240, 480, 960, 1600)


class Needed(StoppingRule):
    """Stop after the number of looks that an image's size stands for."""

    def __call__(self, trail: Trail) -> Tensor:
        """Compare the looks with those needed."""
        return trail.looks >= torch.tensor([needed_looks(size) for size in trail.sizes_hw])


def needed_looks(size_hw: tuple[int, int]) -> int:
    """Return the looks that an image of this size takes, 0 to 11, without order."""
    return (size_hw[1] * 7919 // 13) % (MOST_LOOKS + 1)


def queue(images: int) -> list[Tensor]:
    """Return noise images of mixed sizes, whose widths stand for different numbers of looks."""
    generator = torch.Generator().manual_seed(0)
    sides = [SIDES_PX[int(torch.randint(len(SIDES_PX), (), generator=generator))] for _ in range(images)]
    widths = [side + int(torch.randint(96, (), generator=generator)) for side in sides]
    sizes = zip(sides, widths, strict=True)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def batches(images: Sequence[Tensor], batch: int) -> list[Sequence[Tensor]]:
    """Divide the queue as it is."""
    return [images[start : start + batch] for start in range(0, len(images), batch)]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--base-px", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="print where the stream spends its time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = tnet.BackboneConfig(args.backbone, pretrained=False)
    config = tnet.TNetConfig(backbone=backbone, base_px=args.base_px, levels=3, looks=(2, 2), num_classes=100)
    model = tnet.TNet(config).eval().to(args.device)
    images = [image.to(args.device) for image in queue(args.images)]
    search = tnet.BestFirst(MOST_LOOKS, levels=3, stop=(Needed(),))

    def stream() -> list[Tensor]:
        outputs = traverse_all(model, ([image] for image in images), search, glimpses=args.batch)
        return [output.logits[0] for output in outputs if not isinstance(output, Exception)]

    def shrinking() -> list[Tensor]:
        return [row for some in batches(images, args.batch) for row in model(some, search=search).logits]

    def padded() -> list[Tensor]:
        rows: list[Tensor] = []
        for some in batches(images, args.batch):
            most = max(needed_looks((image.shape[1], image.shape[2])) for image in some)
            rows += model(some, search=replace(search, looks=most, stop=())).logits
        return rows

    ways: dict[str, Callable[[], list[Tensor]]] = {
        "stream": stream, "batches, images drop out": shrinking, "batches, all wait for the slowest": padded
    }  # fmt: skip
    # On a CPU that others share, the time of the process counts, not that of the wall.
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        alone = [model([image], search=search).logits[0] for image in images]
        for name in ("stream", "batches, images drop out"):
            worst = max(float((a - b).abs().max()) for a, b in zip(ways[name](), alone, strict=True))
            print(f"{name}: logits differ from one image at a time by at most {worst:.1e}")
            if worst > 1e-5:
                sys.exit("the results differ")
        padded()
        if args.profile:
            with cProfile.Profile() as profile:
                stream()
            pstats.Stats(profile).sort_stats("cumtime").print_stats(45)
        for repeat in range(args.repeats):
            for name, run in list(ways.items())[:: 1 if repeat % 2 else -1]:
                start = clock()
                run()[-1].sum().item()  # waits for a GPU
                times[name].append(clock() - start)
    rows = []
    for name, seconds in times.items():
        ratios = [slow / fast for slow, fast in zip(seconds, times["stream"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        speed = f"{args.images / statistics.median(seconds):.1f}"
        rows.append([name, speed, f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    print(markdown_table(["way", "images/s", "time relative to the stream: median (middle half)"], rows))
    looks = [needed_looks((image.shape[1], image.shape[2])) for image in images]
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"{usable_cpus()} CPUs, {platform.machine()}"
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{args.images} images of {SIDES_PX[0]} to {SIDES_PX[-1]} px, {statistics.mean(looks):.1f} looks on average")
    print(f"(0 to {max(looks)}), batch {args.batch}, {args.repeats} repeats, {args.backbone} at {args.base_px} px,")
    print(f"one thread, {place}, PyTorch {torch.__version__}, {today}.")


if __name__ == "__main__":
    main()
