"""Speed of the published forms at two commits, measured alternately in one run.

Each commit runs in a separate process that holds one model; both process the same batch alternately (A B B A ...), so
that a machine whose speed drifts slows both alike. Prints, per form and batch size, the median milliseconds per image
of both, and the median and interquartile range of the ratio of pairs.

    python benchmarks/two_commits.py OLD NEW [--pairs 20] [--threads 2] [--forms tnet_efficientnet_b0.cub]

Does not compare outputs: the tests do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Registered form, image side in pixels, looks.
FORMS = (
    ("tnet_bagnet77.imagenet", 224, "3"),
    ("tnet_efficientnet_b0.fmow_448", 448, "2"),
    ("tnet_efficientnet_b0.fmow_896", 896, "2,1"),
    ("tnet_efficientnet_b0.cub", 448, "3"),
)

_WORKER = """
import sys, time, torch, tnet
name, side, looks, batch, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.manual_seed(0)
model = tnet.create_model(name).eval()
images = torch.rand(int(batch), 3, int(side), int(side)) * 2 - 1
looks = [int(number) for number in looks.split(",")]
for line in sys.stdin:
    start = time.perf_counter()
    with torch.inference_mode():
        model(images, looks=looks)
    print(1000 * (time.perf_counter() - start) / len(images), flush=True)
"""


class Worker:
    """One model of one commit in a separate process.

    Args:
        source: folder that holds the package of the commit.
        arguments: form, side, looks, batch size and threads.
    """

    def __init__(self, source: Path, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": arguments[-1]},
        )

    def time_ms(self) -> float:
        """Milliseconds per image of one forward pass."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(sources: list[Path], form: tuple[str, int, str], batch: int, pairs: int, threads: int) -> str:
    """A row of the table for one form and batch size."""
    name, side, looks = form
    workers = [Worker(source, [name, str(side), looks, str(batch), str(threads)]) for source in sources]
    try:
        for worker in workers * 2:  # warm up
            worker.time_ms()
        times: list[tuple[float, float]] = []
        for pair in range(pairs):
            order = (0, 1) if pair % 2 == 0 else (1, 0)
            found = {index: workers[index].time_ms() for index in order}
            times.append((found[0], found[1]))
    finally:
        for worker in workers:
            worker.close()
    old, new = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return f"| {name} | {batch} | {old:.1f} | {new:.1f} | {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} |"


@contextmanager
def checked_out(commits: Sequence[str], folder: Path) -> Iterator[list[Path]]:
    """Check commits out into ``folder``, and yield where each has its package."""
    made: list[Path] = []
    try:
        for index, commit in enumerate(commits):
            made.append(folder / f"{index}-{commit}")
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(made[-1]), commit], check=True)
        yield [path / "src" for path in made]
    finally:
        for path in made:
            subprocess.run(["git", "worktree", "remove", "--force", str(path)], check=False)


def main() -> None:
    """Check both commits out beside each other and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="commit to compare with")
    parser.add_argument("new", help="commit that is compared")
    parser.add_argument("--pairs", type=int, default=20, help="timed forward passes of each")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--forms", nargs="+", default=[name for name, *_ in FORMS])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, checked_out([options.old, options.new], Path(scratch)) as sources:
        print(f"{options.pairs} pairs, {options.threads} thread(s); ratio: new / old, with its middle half")
        print("| form | batch | old, ms per image | new | ratio | middle half |\n|---|---|---|---|---|---|")
        for form in (form for form in FORMS if form[0] in options.forms):
            for batch in options.batches:
                print(compare(sources, form, batch, options.pairs, options.threads), flush=True)


if __name__ == "__main__":
    main()
