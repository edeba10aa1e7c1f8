"""Can a frozen backbone tell from a few images whether looks will pay?

Runs the test of ``tnet suggest --probe`` on several datasets and prints a table.

    python benchmarks/probe.py boards/train.csv:224:group photographs:112 --weights FILE.pth --same-padding

``PX`` is the base resolution, ``COLUMN`` that of what folds keep together. Writes ``OUT/probe.md``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import date
from pathlib import Path

from tnet.backbones import BackboneConfig, pretrained_normalization
from tnet.evaluation.report import markdown_table
from tnet.evaluation.resources import machine
from tnet.files import make_folder, write_text
from tnet.models.config import TNetConfig
from tnet.suggest.probe import Probe, probe
from tnet.suggest.survey import find_layout, survey_images


def rows_of(name: str, found: Probe) -> list[list[str]]:
    """Return a row per resolution."""
    rows = []
    for reading in found.readings:
        shares = [f"{100 * right.float().mean():.1f}" for right in (reading.whole, reading.parts)]
        verdict = found.verdict if reading is found.readings[-1] else ""
        sizes = str(len(reading.whole)), str(reading.side_px), f"{reading.macs / 1e9:.2f}"
        rows.append([name, *sizes, *shares, f"{100 * reading.area:.1f}", verdict])
    return rows


def main() -> None:
    """Test each dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="PATH[:PX[:COLUMN]]", help="folder or table of images")
    parser.add_argument("--weights", type=Path, help="of MobileNetV2; timm's own are fetched if left out")
    parser.add_argument("--same-padding", action="store_true", help="the weights are from TensorFlow, for [-1, 1]")
    parser.add_argument("--images", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/probe"))
    arguments = parser.parse_args()
    kwargs = {"pad_type": "same"} if arguments.same_padding else {}
    weights = None if arguments.weights is None else str(arguments.weights)
    backbone = BackboneConfig("mobilenetv2_100", pretrained=weights is None, weights=weights, kwargs=dict(kwargs))
    mean, std = ((0.5,), (0.5,)) if arguments.same_padding else pretrained_normalization(backbone.name, 3)
    rows = []
    for item in arguments.data:
        path, base, column = (*item.split(":"), "", "")[:3]
        data = replace(find_layout(path), group_column=column or None)
        config = TNetConfig(backbone=backbone, base_px=int(base or 224), mean=mean, std=std)
        found = probe(survey_images(data), config, images=arguments.images, seed=arguments.seed)
        rows += rows_of(Path(path).parent.name if data.kind == "table" else Path(path).name, found)
    heads = ["images of", "number", "px", "G", "from the whole %", "from places %", "evidence %", "says"]
    system = ", ".join(f"{key} {value}" for key, value in machine().items())
    text = f"{markdown_table(heads, rows)}\n\nSeed {arguments.seed}; {system}, {date.today()}.\n"
    write_text(make_folder(arguments.out) / "probe.md", text)
    print(text)


if __name__ == "__main__":
    main()
