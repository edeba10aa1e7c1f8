"""Training from lazily read files and from decoded images: memory, time per epoch, time waiting for data.

    python benchmarks/lazy_training.py digits                        # synthetic: 1500, 3000 and 6000 px, tiled TIFF
    python benchmarks/lazy_training.py photos FOLDER                 # FOLDER/<class>/*.jpg, as JPEG and as pyramids

Each row is a separate process: three epochs over the same images with a MobileNetV2 at 96 px, 3 of 25 regions, random
weights (time and memory do not depend on them). "Memory" is the peak resident memory of all processes of the run, above
that before the first image was read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS = 3
BATCH = 8
BASE_PX = 96
DIGITS_SIDES = (1500, 3000, 6000)
DIGITS_IMAGES = 48


def resident_mib() -> float:
    """Return the memory of this process and its children, shared pages counted once (proportional set size)."""
    pids = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        pids += [int(pid) for pid in (task / "children").read_text().split()]
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1024


class Watch(threading.Thread):
    """Samples the memory ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_mib = self.peak_mib = resident_mib()

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.peak_mib = max(self.peak_mib, resident_mib())
            time.sleep(0.1)


def measure(folder: Path, read: str, workers: int) -> dict[str, Any]:
    """Train on the images of a folder, in a separate process."""
    import torch

    from tnet.data.loading import train_loader
    from tnet.models.tnet import TNet
    from tnet.objectives import Objective
    from tnet.training.data import TNetData
    from tnet.training.recipe import parse_recipe, with_classes

    torch.manual_seed(0)
    torch.set_num_threads(2)
    recipe = parse_recipe(
        f"""
        model: {{backbone: {{name: mobilenetv2_100}}, base_px: {BASE_PX}, grid: {{rows: 5, cols: 5, cell_extent: 0.34}},
                 looks: [3], mean: [0.5], std: [0.5], in_channels: 3}}
        data: {{root: {folder.parent}, train: {folder.name}, val: {folder.name}, read: {read},
                augment: {{horizontal_flip: true, vertical_flip: true, crop_area: [0.8, 1.0]}}}}
        train: {{batch_size: {BATCH}, workers: {workers}}}
        """
    )
    data = TNetData(recipe)
    recipe = with_classes(recipe, data.classes, data.multilabel)
    model, objective = TNet(recipe.model).train(), Objective(recipe.objective).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    blank = torch.zeros(BATCH, 3, 400, 400, dtype=torch.uint8)
    objective(model(blank), torch.zeros(BATCH, dtype=torch.long), model).total.backward()  # allocate what stays
    watch = Watch()
    watch.start()
    epochs, waits = [], []
    for epoch in range(EPOCHS):
        start, waited = time.perf_counter(), 0.0
        batches = iter(train_loader(data.train_data, BATCH, workers, recipe.seed, epoch, None))
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            optimizer.zero_grad()
            objective(model(batch.images), batch.targets, model).total.backward()
            optimizer.step()
        epochs.append(time.perf_counter() - start)
        waits.append(waited)
    return {"epochs_s": epochs, "waits_s": waits, "memory_mib": watch.peak_mib - watch.start_mib}


def write_digits(root: Path, side_px: int) -> Path:
    """Write synthetic images as flat tiled TIFF; two classes, by the parity of the label."""
    import tifffile

    from tnet.data.digits import DigitsConfig, MegapixelDigits

    folder = root / f"digits_{side_px}"
    made = MegapixelDigits(DigitsConfig(canvas_px=side_px, images_train=DIGITS_IMAGES), "train")
    for index in range(DIGITS_IMAGES):
        image, target, _ = made[index]
        place = folder / f"class{int(target) % 2}"
        place.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(place / f"{index:03}.tif", image[0].numpy(), tile=(256, 256), compression="adobe_deflate")
    return folder


def write_pyramids(source: Path, root: Path) -> Path:
    """Write the images of class folders as TIFF pyramids."""
    from tnet.scenes.pyramid import write_pyramid

    folder = root / "pyramids"
    for path in sorted(source.glob("*/*")):
        place = folder / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        write_pyramid(path, place / f"{path.stem}.tif", compression="jpeg")
    return folder


def run_rows(rows: list[tuple[str, Path, str, int]]) -> None:
    """Measure each row and print the table."""
    print(
        "| images | read | workers | memory, MiB | first epoch, s | later epochs, s | waiting for data, s |\n"
        "|---|---|---|---|---|---|---|"
    )
    for label, folder, read, workers in rows:
        command = [sys.executable, __file__, "one", str(folder), "--read", read, "--workers", str(workers)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found = json.loads(done.stdout.splitlines()[-1])
        later, waits = found["epochs_s"][1:], found["waits_s"]
        print(
            f"| {label} | {read} | {workers} | {found['memory_mib']:.0f} | {found['epochs_s'][0]:.1f} | "
            f"{np.mean(later):.1f} | {waits[0]:.1f}, then {np.mean(waits[1:]):.1f} |",
            flush=True,
        )


def main() -> None:
    """Write the images, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("digits", "photos", "one"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--read", default="lazy")
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "one":
        print(json.dumps(measure(arguments.folder, arguments.read, arguments.workers)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows: list[tuple[str, Path, str, int]] = []
        if arguments.what == "digits":
            for side in DIGITS_SIDES:
                folder = write_digits(Path(scratch), side)
                rows += [(f"{DIGITS_IMAGES} digits, {side} px, tiled", folder, read, 0) for read in ("memory", "lazy")]
            rows += [(rows[2][0], rows[2][1], read, 1) for read in ("memory", "lazy")]
        else:
            source = arguments.folder.resolve()
            count = len(list(source.glob("*/*")))
            pyramids = write_pyramids(source, Path(scratch))
            for workers in (0, 1):
                rows += [(f"{count} photographs, JPEG", source, read, workers) for read in ("memory", "lazy")]
                rows.append((f"{count} photographs, pyramids", pyramids, "lazy", workers))
        run_rows(rows)


if __name__ == "__main__":
    main()
