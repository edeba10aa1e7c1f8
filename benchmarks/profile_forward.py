"""Where the time of inference goes: shares of the parts of a forward pass, before and after preparation.

    OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=2000 python benchmarks/profile_forward.py [--models NAME ...] [--rounds 5]
        [--engines openvino onnx]

(Threads wait as the command line lets them wait.)

For each published form at batch 1 and 16: crop and resize, backbone, position, locator, answer (aggregation and
classes), and the rest, which is Python and bookkeeping; and multiply-adds per second against the machine's own matrix
products. Other engines run the exported model, of which only the whole pass is timed. Reading and decoding a JPEG of
the same size is timed beside it. (Not named ``profile``, which is a module of Python's.)
"""

from __future__ import annotations

import argparse
import datetime
import io
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tnet.allocator import keep_freed_memory
from tnet.cost import multiply_adds
from tnet.evaluation.bench import ENGINES, FILES, BenchEngine, export_and_open
from tnet.evaluation.report import looks_label, markdown_table
from tnet.export.runtime import Run
from tnet.export.write import default_size
from tnet.models import TNet
from tnet.models.registry import create_model

MODELS = [
    "tnet_bagnet77.imagenet", "tnet_efficientnet_b0.fmow_448", "tnet_efficientnet_b0.fmow_896",
    "tnet_efficientnet_b0.cub", "tnet_mobilenetv2_100.own",
]  # fmt: skip
PARTS = {
    "look_pixels": "crop, resize",
    "describe": "backbone",
    "position": "position",
    "locate": "locator",
    "answer": "answer",
}


def matmul_rate(seconds: float = 1.0) -> float:
    """Return the multiply-adds per second of the best of several products of matrices."""
    best = 0.0
    with torch.inference_mode():
        for side in (512, 1024, 2048):
            a, b = torch.randn(2, side, side)
            end = time.perf_counter() + seconds / 3
            while time.perf_counter() < end:
                start = time.perf_counter()
                torch.mm(a, b)
                best = max(best, side**3 / (time.perf_counter() - start))
    return best


def timed(spent: Counter[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that adds its time to a counter."""

    def wrapper(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments, **options)
        spent[name] += time.perf_counter() - start
        return result

    return wrapper


def one_pass(model: TNet | Run, images: torch.Tensor) -> float:
    """Return the seconds that a model takes."""
    start = time.perf_counter()
    if isinstance(model, TNet):
        model(images)
    else:
        model(image=images)
    return time.perf_counter() - start


def shares(models: Sequence[TNet | Run], images: torch.Tensor, rounds: int) -> list[tuple[float, dict[str, float]]]:
    """Return, per model, the median time of a pass in seconds, and the share of each part; models take turns.

    Each turn is two passes, of which the second is timed: caches then hold the model's own weights.
    """
    spent: list[Counter[str]] = [Counter() for _ in models]
    times: list[list[float]] = [[] for _ in models]
    for model, mine in zip(models, spent, strict=True):
        if not isinstance(model, TNet):
            continue
        for part, name in PARTS.items():
            call = getattr(model, part)
            object.__setattr__(model, part, timed(mine, name, call.forward if part == "position" else call))
    with torch.inference_mode():
        for _ in range(rounds):
            for model, mine, passes in zip(models, spent, times, strict=True):
                before = mine.copy()
                one_pass(model, images)
                mine.clear()
                mine.update(before)
                passes.append(one_pass(model, images))
    results: list[tuple[float, dict[str, float]]] = []
    for model, mine, passes in zip(models, spent, times, strict=True):
        if not isinstance(model, TNet):
            results.append((statistics.median(passes), {}))
            continue
        for part in PARTS:
            object.__delattr__(model, part)
        found = {name: mine[name] / sum(passes) for name in PARTS.values()}
        results.append((statistics.median(passes), {**found, "rest": 1 - sum(found.values())}))
    return results


def decode_ms(side_px: int) -> float:
    """Return the time of decoding a JPEG of smooth noise, milliseconds."""
    noise = np.random.default_rng(0).integers(0, 256, (side_px // 8, side_px // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((side_px, side_px), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        np.asarray(Image.open(io.BytesIO(file.getvalue())))
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def exported(model: TNet, engines: Sequence[BenchEngine]) -> dict[str, Run]:
    """Return the model in other engines, by their names."""
    sessions = {}
    for engine in engines:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / engine
            sessions[ENGINES[engine]] = export_and_open(model, out, engine, looks=model.config.default_looks)
    return sessions


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engines", nargs="+", choices=list(FILES), default=[], help="time exported models too")
    args = parser.parse_args()
    keep_freed_memory()
    peak = matmul_rate()
    lines = []
    for name in args.models:
        model = create_model(name).eval()
        assert isinstance(model, TNet)
        size_hw, looks = default_size(model.config), looks_label(model.config.default_looks)
        macs, decode = multiply_adds(model), decode_ms(size_hw[0])
        systems: dict[str, TNet | Run] = {"before": model, "prepared": model.prepare_for_inference()}
        systems |= exported(model, args.engines)
        for batch in args.batches:
            images = torch.randint(256, (batch, model.config.in_channels, *size_hw), dtype=torch.uint8)
            results = shares([*systems.values()], images, args.rounds)
            for label, (seconds, parts) in zip(systems, results, strict=True):
                gain = "" if label == "before" else f"{results[0][0] / seconds:.2f}"
                rate = macs * batch / seconds / peak
                lines.append([
                    f"{name}, {looks} looks, {size_hw[0]} px", str(batch), label, f"{1000 * seconds / batch:.1f}", gain,
                    *(f"{100 * parts[part]:.0f}" if parts else "" for part in (*PARTS.values(), "rest")),
                    f"{100 * rate:.0f}", f"{decode:.1f}",
                ])  # fmt: skip
    head = ["model", "batch", "", "ms/image", "times faster", *(f"{name} %" for name in (*PARTS.values(), "rest"))]
    print(markdown_table([*head, "of matrix product rate %", "JPEG decode ms"], lines))
    print(
        f"Matrix products: {peak / 1e9:.0f} G multiply-adds/s. {platform.machine()}, {torch.get_num_threads()} threads,"
        f" Python {platform.python_version()}, PyTorch {torch.__version__}, {datetime.date.today()}."
    )


if __name__ == "__main__":
    main()
