"""Speed of backbones on the CPU with pixels channels last in memory: the same steps both ways, alternating.

    python benchmarks/memory_format.py [--rounds 5]

timm backbones receive glimpses so in evaluation and in ``tnet train``; the project's own is measured beside them.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time

import torch
from torch import Tensor, nn

from tnet.allocator import keep_freed_memory
from tnet.backbones import create_backbone
from tnet.backbones.base import BackboneConfig
from tnet.evaluation.report import markdown_table

CASES = {"mobilenetv2_100": 96, "tf_efficientnet_b0": 224, "resnet18": 96, "convnext_atto": 96, "bagnet77": 77}
FORMATS = (torch.contiguous_format, torch.channels_last)


def seconds(module: nn.Module, pixels: Tensor, *, learns: bool) -> float:
    """Return the time of one pass, forward only or with all gradients."""
    start = time.perf_counter()
    with torch.set_grad_enabled(learns):
        found = module(pixels)
    if learns:
        found.float().square().mean().backward()
        module.zero_grad()
    return time.perf_counter() - start


def features(name: str, side_px: int) -> nn.Module:
    """Return the computation of a backbone without its conversion of the memory format."""
    backbone = create_backbone(BackboneConfig(name), 3, side_px, 5)

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, pixels: Tensor) -> Tensor:
            model = getattr(backbone, "model", None)
            return backbone(pixels).pooled if model is None else model.forward_features(pixels)

    return Features()


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for name, side in CASES.items():
        torch.manual_seed(0)
        module = features(name, side).train()
        images = torch.randn(args.batch, 3, side, side)
        cells = [f"{name}, {args.batch} x {side} px"]
        for learns in (True, False):
            module.train(learns)
            found: list[tuple[float, ...]] = []
            for _ in range(args.rounds + 1):  # the first warms up
                both = [images.contiguous(memory_format=item) for item in FORMATS]
                found.append(tuple(seconds(module, pixels, learns=learns) for pixels in both))
            ratios = [first / last for first, last in found[1:]]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(cells)
    print(markdown_table(["backbone", "times faster, training", "times faster, evaluation"], rows))
    print(
        f"Median (range) of {args.rounds} pairs. {platform.machine()}, 1 thread, Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date()}."
    )


if __name__ == "__main__":
    main()
