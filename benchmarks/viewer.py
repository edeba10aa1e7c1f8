"""Time of tiles in ``tnet view``, and memory of its process, on large images.

    python benchmarks/viewer.py                        # a pyramid of 100,000 x 100,000 pixels in a temporary folder
    python benchmarks/viewer.py --folder slides/       # and every image in a folder
    python benchmarks/viewer.py --side 20000 --tiles 500

Serves each image in a process of its own and fetches random tiles (any level, any place) over one connection, as
a browser does. The first is the first of the process, which opens the file. Coarse levels have few tiles, which come
often.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

from scale import write_tiled

from tnet.backbones import BackboneConfig
from tnet.models import TNet, TNetConfig
from tnet.models.io import save_model
from tnet.scenes.find import find_images
from tnet.view.tiles import TILE_PX, level_size, max_level


class Server:
    """``tnet view`` in a process, and a connection to it."""

    def __init__(self, model: Path, root: Path) -> None:
        command = [sys.executable, "-m", "tnet", "view", str(model), "--root", str(root), "--port", "0", "--no-open"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().split()[0]
        self.connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=300)

    def get(self, route: str, **query: object) -> bytes:
        """Fetch something."""
        self.connection.request("GET", f"{route}?{urlencode(query)}")
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{route} {query}: {content[:300]!r}")
        return content

    @property
    def megabytes(self) -> float:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(timeout=30)


def measure(server: Server, name: str, tiles: int) -> list[str]:
    """Return the cells of one row of the table."""
    generator, before = random.Random(0), server.megabytes
    started = time.perf_counter()
    about = json.loads(server.get("/api/image", path=name))
    opened_ms = 1000 * (time.perf_counter() - started)
    size_hw = about["height"], about["width"]
    times_ms: list[float] = []
    after_quarter = before
    for number in range(tiles):
        level = generator.randint(0, max_level(size_hw))
        rows, cols = (-(-side // TILE_PX) for side in level_size(size_hw, level))
        place = {"level": level, "col": generator.randrange(cols), "row": generator.randrange(rows)}
        started = time.perf_counter()
        server.get("/api/tile", path=name, **place)
        times_ms.append(1000 * (time.perf_counter() - started))
        if number == tiles // 4:
            after_quarter = server.megabytes
    first, rest = opened_ms + times_ms[0], sorted(times_ms[1:])
    p95 = rest[int(0.95 * len(rest))]
    numbers = [first, statistics.median(rest), p95, rest[-1], before, after_quarter, server.megabytes]
    return [name, f"{size_hw[1]:,} x {size_hw[0]:,}", *(f"{number:.0f}" for number in numbers)]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=100_000, help="side of the pyramid, pixels; 0 for none")
    parser.add_argument("--folder", type=Path, help="folder with further images")
    parser.add_argument("--tiles", type=int, default=2000, help="random tiles per image")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = save_model(TNet(TNetConfig(backbone=BackboneConfig("resnet10t"), base_px=64)), Path(scratch, "model"))
        root = Path(scratch, "images")
        root.mkdir()
        jobs: list[tuple[Path, str]] = []
        if arguments.side:
            write_tiled(root / "pyramid.tif", arguments.side)
            print(f"pyramid.tif: {(root / 'pyramid.tif').stat().st_size / 1e6:,.0f} MB", file=sys.stderr)
            jobs.append((root, "pyramid.tif"))
        if arguments.folder is not None:
            folder = arguments.folder.resolve()
            jobs += [(folder, path.relative_to(folder).as_posix()) for path in find_images(folder)]
        for place, name in jobs:
            server = Server(model, place)
            try:
                rows.append(measure(server, name, arguments.tiles))
            finally:
                server.close()
            print(" | ".join(rows[-1]), file=sys.stderr)
    titles = [
        "image",
        "size",
        "first tile, ms",
        "median",
        "95 %",
        "slowest",
        "MB before",
        "after a quarter",
        "at the end",
    ]
    for row in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
