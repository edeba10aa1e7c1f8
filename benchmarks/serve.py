"""The HTTP endpoint under load: throughput against ``predict``, latency, errors and memory; and what overload gets.

    python benchmarks/serve.py RUN FOLDER --clients 10 --seconds 60

Starts ``tnet serve`` on this machine, lets clients send images of a folder one after another for a while, then many
more clients than it takes. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import tnet
from tnet.inference.inputs import find_inputs


class Clients:
    """Threads that send images until a time, one request at a time each."""

    def __init__(self, port: int, images: list[bytes], count: int, seconds: float) -> None:
        self.port, self.images, self.until = port, images, time.monotonic() + seconds
        self.statuses: Counter[int] = Counter()
        self.times_ms: dict[int, list[float]] = {}
        self.lock = threading.Lock()
        threads = [threading.Thread(target=self.run, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def run(self, number: int) -> None:
        """Send images, beginning with another one in each thread."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        start = number * len(self.images) // 16
        for image in itertools.chain(self.images[start:], itertools.cycle(self.images)):
            if time.monotonic() >= self.until:
                return
            begin = time.monotonic()
            connection.request("POST", "/predict", image, {"content-type": "application/octet-stream"})
            response = connection.getresponse()
            response.read()
            time_ms = 1000 * (time.monotonic() - begin)
            with self.lock:
                self.statuses[response.status] += 1
                self.times_ms.setdefault(response.status, []).append(time_ms)

    def line(self, status: int) -> str:
        """Return median and 95th percentile of the time of a status, ms."""
        times = sorted(self.times_ms.get(status, [float("nan")]))
        return f"{statistics.median(times):.0f} / {times[int(0.95 * (len(times) - 1))]:.0f}"


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def main() -> None:
    """Start the server, load it, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--overload", type=int, default=200, help="clients of the second part; the server takes 64")
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    paths = find_inputs([arguments.folder])[: arguments.images]
    images = [path.read_bytes() for path in paths]
    model = tnet.load_model(arguments.run)
    tnet.predict(model, paths[:8])
    begin = time.monotonic()
    tnet.predict(model, paths, batch_size=8)
    alone = len(paths) / (time.monotonic() - begin)
    del model
    command = [sys.executable, "-m", "tnet", "serve", str(arguments.run), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(re.findall(r":(\d+)/", server.stdout.readline())[0])
        Clients(port, images, 1, 5)  # the decoder starts with the first image
        before = memory_mb(server.pid)
        load = Clients(port, images, arguments.clients, arguments.seconds)
        after = memory_mb(server.pid)
        over = Clients(port, images, arguments.overload, 10)
        server.terminate()
        server.wait(60)
    rate = load.statuses[200] / arguments.seconds
    print("| | images per second | answers | ms, median / 95 % | refused (503) | ms |\n|---|---|---|---|---|---|")
    print(f"| `tnet.predict`, batches of 8 | {alone:.1f} | {len(paths)} | | | |")
    for name, found, per_second in (
        (f"{arguments.clients} clients", load, f"{rate:.1f}"),
        (f"{arguments.overload} clients", over, f"{over.statuses[200] / 10:.1f}"),
    ):
        others = {status: count for status, count in found.statuses.items() if status not in (200, 503)}
        answers = f"{found.statuses[200]}{f', others {others}' if others else ''}"
        print(f"| {name} | {per_second} | {answers} | {found.line(200)} | {found.statuses[503]} | {found.line(503)} |")
    print(f"\nMemory of the server: {before:.0f} MB before, {after:.0f} MB after {arguments.seconds:g} s.")


if __name__ == "__main__":
    main()
