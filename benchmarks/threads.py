"""Time of a TNet on the CPU by how threads wait, on a quiet machine and beside a process that keeps one CPU busy.

    python benchmarks/threads.py [--rounds 3] [--seconds 3]

Every measurement is a process of its own, because OpenMP reads its settings once. The model is prepared for inference.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tnet.evaluation.report import markdown_table
from tnet.threads import choose_threads, usable_cpus

SETTINGS: dict[str, dict[str, str]] = {
    "threads that spin (PyTorch's default)": {},
    "threads that sleep": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "tnet's choice": {},
}
choose_threads(SETTINGS["tnet's choice"])
PLACES = ("quiet", "one CPU busy")


def measure(form: str, batch: int, seconds: float) -> float:
    """Return milliseconds per image of a registered model at the size of its images: the median of passes."""
    import torch

    from tnet.allocator import keep_freed_memory
    from tnet.export.write import default_size
    from tnet.models.registry import create_model

    keep_freed_memory()
    model = create_model(form).eval().prepare_for_inference()
    images = torch.randint(256, (batch, model.config.in_channels, *default_size(model.config)), dtype=torch.uint8)
    times: list[float] = []
    with torch.inference_mode():
        model(images)
        end = time.monotonic() + seconds
        while len(times) < 3 or time.monotonic() < end:
            start = time.perf_counter()
            model(images)
            times.append(1000 * (time.perf_counter() - start) / batch)
    return statistics.median(times)


@contextmanager
def competing(place: str) -> Iterator[None]:
    """Keep one CPU busy meanwhile, if the place is a busy one."""
    if place == PLACES[0]:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", default="tnet_efficientnet_b0.fmow_448")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--one", type=int, metavar="BATCH", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.form, args.one, args.seconds))
        return
    keys = [(place, batch, name) for place in PLACES for batch in args.batches for name in SETTINGS]
    times: dict[tuple[str, int, str], list[float]] = {key: [] for key in keys}
    chosen = {name for setting in SETTINGS.values() for name in setting}
    for _ in range(args.rounds):
        for place, batch, name in keys:
            environment = {key: value for key, value in os.environ.items() if key not in chosen} | SETTINGS[name]
            command = [sys.executable, __file__, "--form", args.form, "--seconds", str(args.seconds)]
            with competing(place):
                done = subprocess.run(
                    [*command, "--one", str(batch)], env=environment, text=True, capture_output=True, check=True
                )
            times[place, batch, name].append(float(done.stdout))
            print(f"{place}, batch {batch}, {name}: {done.stdout.strip()} ms", file=sys.stderr, flush=True)
    rows = []
    for name in SETTINGS:
        cells = []
        for place in PLACES:
            for batch in args.batches:
                best = min(statistics.median(times[place, batch, other]) for other in SETTINGS)
                mine = times[place, batch, name]
                middle = statistics.median(mine)
                cells.append(f"{middle:.1f} ({min(mine):.1f} to {max(mine):.1f}); {middle / best:.2f}")
        rows.append([name, *cells])
    heads = [f"{place}, batch {batch}" for place in PLACES for batch in args.batches]
    print(markdown_table(["", *heads], rows))
    today = datetime.datetime.now(datetime.UTC).date()
    print(
        f"{args.form}: ms per image, median (range) of {args.rounds} processes, and times the best of the column. "
        f"{platform.machine()}, {usable_cpus()} CPUs, {today}."
    )


if __name__ == "__main__":
    main()
