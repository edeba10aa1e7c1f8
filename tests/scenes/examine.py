"""A process of its own in which files are looked at, under limits, and what came of each.

Run as a module (:func:`examine` does) it looks at every file that a list on its standard input names, and tells of each
in a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tests.scenes.readers import make

SECONDS = 10.0
GROWTH_BYTES = 300 * 2**20
_ADDRESS_SPACE_BYTES = 2 * 2**30  # beyond what the process has when it starts: a bomb ends in an error, not in swap

Expect = Literal["refused", "right", "partly", "not wrong", "anything"]
"""What may come of a file: an error at once; the picture; the picture from afar and an error from near; errors or the
picture; or whatever it likes within the limits, where no format could tell damage from pixels."""


@dataclass
class Case:
    """One file, or folder that is a picture.

    Attributes:
        path: of it.
        expect: what may come of it.
        tolerance: most that a pixel may differ from :func:`picture`, levels of 255.
        options: of ``open_scene``.
    """

    path: str
    expect: Expect = "refused"
    tolerance: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a file.

    Attributes:
        path: of it.
        opened: whether it could be opened.
        looks: of each look, ``right``, ``wrong`` or ``refused``; the first is at the whole.
        errors: what was raised, with the type.
        wrong: how far the worst look was off, levels of 255.
        seconds: all of it took.
        growth_bytes: of the process's memory at its peak.
        noise: what was written to standard error by others.
        reached: network addresses that were asked for.
    """

    path: str
    opened: bool = False
    looks: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wrong: float = 0.0
    seconds: float = 0.0
    growth_bytes: int = 0
    noise: str = ""
    reached: list[str] = field(default_factory=list)


SIZE_HW = (243, 317)
PART_PX = 122


def picture() -> NDArray[np.uint8]:
    """Ramps, so that every place shows where it is, and noise, so that little is compressed away."""
    noise = np.random.default_rng(0).integers(-6, 7, (*SIZE_HW, 3))
    return (make.ramps(*SIZE_HW).astype(int) + noise).clip(0, 255).astype(np.uint8)


def examine(cases: Iterable[Case], environment: dict[str, str] | None = None) -> list[Outcome]:
    """Look at files in another process, which is given up when one of them takes too long.

    Raises:
        AssertionError: the process ended before all were looked at; the message names the file.
    """
    cases = list(cases)
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join((str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        timeout=30 + SECONDS * 3 + len(cases),
        check=False,
    )
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(outcomes) != len(cases):
        raise AssertionError(
            f"ended with {done.returncode} at {cases[len(outcomes)].path}:\n{done.stderr[-3000:]}\n{done.stdout[-300:]}"
        )
    return outcomes


def complaint(case: Case, outcome: Outcome) -> str:
    """What is not as it should be; empty for nothing."""
    looks = outcome.looks
    found = []
    name = str(Path(case.path))
    errors = [error.replace("://", ":/") for error in outcome.errors]  # addresses are shown as they were given
    if any(not error.startswith(("ImageError: ", "ResourceError: ")) or name not in error for error in errors):
        found.append(f"raised something else: {outcome.errors}")
    if case.expect not in ("refused", "anything") and "wrong" in looks:
        found.append(f"gave a wrong picture, {outcome.wrong:.0f} off, in {looks}")
    if case.expect == "refused" and outcome.opened and looks[0] != "refused":
        found.append(f"was not refused: {looks}")
    if case.expect in ("right", "partly") and (not outcome.opened or looks[0] != "right"):
        found.append(f"cannot be looked at as a whole: {outcome.errors}")
    if case.expect == "right" and set(looks) != {"right"}:
        found.append(f"gave {looks}")
    if case.expect == "partly" and "refused" not in looks:
        found.append("did not show its damage")
    if outcome.seconds > SECONDS:
        found.append(f"took {outcome.seconds:.1f} s")
    if outcome.growth_bytes > GROWTH_BYTES:
        found.append(f"took {outcome.growth_bytes / 2**20:.0f} MiB")
    if outcome.noise:
        found.append(f"made noise: {outcome.noise[:300]}")
    if outcome.reached:
        found.append(f"reached for {outcome.reached}")
    return f"{case.path} {'; '.join(found)}" if found else ""


def complaints(cases: Iterable[Case], environment: dict[str, str] | None = None) -> list[str]:
    """What is not as it should be, of all files."""
    cases = list(cases)
    found = (complaint(case, outcome) for case, outcome in zip(cases, examine(cases, environment), strict=True))
    return [text for text in found if text]


def boxes(height: int, width: int) -> list[tuple[tuple[int, int, int, int], int]]:
    """The whole at two sizes, so that coarse levels are asked for, and parts of it in full."""
    whole = [((0, 0, height, width), size_px) for size_px in (32, 70)]
    tops, lefts = range(0, min(height, 244), PART_PX), range(0, min(width, 320), PART_PX)
    parts = [(y, x, min(y + PART_PX, height), min(x + PART_PX, width)) for y in tops for x in lefts]
    return whole + [(part, PART_PX) for part in parts]


def _look_at(case: Case, outcome: Outcome, truth: Any) -> None:
    import warnings

    from tests.helpers import regions

    from tnet.errors import SlowImageWarning, TnetError
    from tnet.scenes import open_scene

    warnings.simplefilter("error")
    warnings.simplefilter("ignore", SlowImageWarning)
    fill = (0.5,) * 3
    try:
        scene = open_scene(case.path, **case.options)
        outcome.opened = True
        is_picture = scene.size_hw == SIZE_HW
        for box, size_px in boxes(*scene.size_hw):
            try:
                seen = scene.glimpse(box, size_px, channels=3, resize="antialias", fill=fill)
            except Exception as error:
                if not isinstance(error, TnetError):
                    raise
                outcome.looks.append("refused")
                outcome.errors.append(f"{type(error).__name__}: {error}")
                continue
            if not is_picture:
                outcome.looks.append("wrong")
                outcome.wrong = 255.0
                continue
            off = float(255 * (seen - truth.glimpse(regions([box]), size_px)[0]).abs().max())
            allowed = case.tolerance if size_px == PART_PX else max(case.tolerance, 20.0)
            is_right = seen.shape == (3, size_px, size_px) and off <= allowed + 1e-3
            outcome.looks.append("right" if is_right else "wrong")
            outcome.wrong = max(outcome.wrong, off)
        scene.close()
    except Exception as error:
        outcome.errors.append(f"{type(error).__name__}: {error}")


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0


def _main() -> None:
    import faulthandler
    import resource
    import tempfile
    import time

    import torch

    from tnet.scenes import TensorBatch

    torch.set_num_threads(1)
    cases = [Case(**each) for each in json.loads(sys.stdin.read())]
    truth = TensorBatch([torch.from_numpy(picture()).permute(2, 0, 1)], "antialias", 0.5)
    reached: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
            reached.append(f"{event} {arguments[-1] if event == 'socket.connect' else arguments[0]}")

    sys.addaudithook(note)
    with tempfile.TemporaryFile("w+b") as noise, os.fdopen(os.dup(2), "w") as stderr:
        os.dup2(noise.fileno(), 2)
        # Once without being judged: what libraries load is theirs, and is loaded once.
        for _ in range(2):
            for case in cases[:1]:
                _look_at(case, Outcome(case.path), truth)
        limit = _memory("VmSize") + _ADDRESS_SPACE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for case in cases:
            outcome = Outcome(case.path)
            noise.truncate(0)
            noise.seek(0)
            reached.clear()
            faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=stderr)
            before = _memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            start = time.monotonic()
            _look_at(case, outcome, truth)
            outcome.seconds = time.monotonic() - start
            outcome.growth_bytes = _memory("VmHWM") - before
            faulthandler.cancel_dump_traceback_later()
            sys.stderr.flush()
            noise.seek(0)
            outcome.noise = noise.read().decode(errors="replace")
            outcome.reached = list(reached)
            sys.stdout.write(json.dumps(asdict(outcome)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _main()
