"""Are bfloat16 and compiling faster than single precision on this CPU?

Times prepared backbones on batches of glimpses, variants in turn, each after a pass that is not timed.

    OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=2000 python benchmarks/half_precision.py [--compile]
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
from typing import Any

import torch

from tnet.allocator import keep_freed_memory
from tnet.evaluation.bench import interleaved
from tnet.evaluation.report import markdown_table
from tnet.models.registry import create_model
from tnet.models.tnet import TNet

MODELS = ("tnet_bagnet77.imagenet", "tnet_efficientnet_b0.fmow_896", "tnet_mobilenetv2_100.own")


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16, 48])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also compiled, which takes minutes")
    options = parser.parse_args()
    keep_freed_memory()
    variants: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"precision": "bf16"}}
    if options.compile:
        variants |= {"fp32, compiled": {"compiled": True}, "bf16, compiled": {"precision": "bf16", "compiled": True}}
    body = []
    for name in options.models:
        model = create_model(name).eval()
        assert isinstance(model, TNet)
        backbones = {kind: model.prepare_for_inference(**how).backbone for kind, how in variants.items()}
        side_px = model.config.base_px
        for size in options.batch_sizes:
            glimpses = torch.randn(size, model.config.in_channels, side_px, side_px)
            with torch.inference_mode():
                found = interleaved([*backbones.values()], glimpses, options.rounds, lambda: None)
            times = dict(zip(variants, found, strict=True))
            single = times["fp32"]
            cells = [_cell(single)]
            for kind in [*variants][1:]:
                ratios = [a / b for a, b in zip(single, times[kind], strict=True)]
                cells.append(f"{statistics.median(ratios):.2f} ({_middle(ratios)})")
            body.append([f"{name}, {side_px} px", str(size), *cells])
    heads = ["backbone of", "batch", "ms/glimpse, fp32", *(f"times faster, {kind}" for kind in [*variants][1:])]
    print(markdown_table(heads, body))
    print(
        f"Median (middle half) of {options.rounds} rounds. {platform.machine()}, {torch.get_num_threads()} thread(s), "
        f"PyTorch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}."
    )


def _cell(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({_middle(times)})"


def _middle(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
