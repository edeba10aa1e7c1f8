"""Cost of every full-size model of the paper on this machine, beside the published one.

    python benchmarks/full_size.py --out runs/full_size            # all; continues where it was stopped
    python benchmarks/full_size.py --out runs/full_size --only dram.imagenette saccader.imagenet

Weights are random: costs do not depend on them. Published times and memory are of the authors' GPU; the reference
implementation's times on a CPU were taken once, with TensorFlow 2.15 on a quiet machine with two cores like this one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tnet.allocator import keep_freed_memory
from tnet.config import parse_dataclass, to_plain
from tnet.evaluation.evaluator import LEARNED
from tnet.evaluation.report import markdown_table
from tnet.evaluation.resources import Cost, CostsConfig, devices_here, machine, measure_costs
from tnet.files import make_folder, write_text
from tnet.models.io import save_model
from tnet.models.registry import create_model

Looks = int | tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """Published costs of a model at a number of looks; ``None`` if not published.

    Attributes:
        gmacs: billions of multiply-adds.
        params_m: millions of parameters, running statistics of batch norm included.
        gpu_ms: milliseconds per image on the authors' GPU.
        gpu_gb: peak memory on it.
        cpu_ms: milliseconds per image in batches of 1 and of 16, reference implementation on two cores.
    """

    gmacs: float | None = None
    params_m: float | None = None
    gpu_ms: float | None = None
    gpu_gb: float | None = None
    cpu_ms: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """A model at several numbers of looks, on images of one size."""

    name: str
    side_px: int
    looks: dict[Looks, Published]
    base_px: int | None = None

    @property
    def label(self) -> str:
        """Name and size of the images."""
        return f"{self.name} at {self.side_px}"


def _birds() -> Iterator[Row]:
    """TNet-B0 to B4, and B0 to B4 on the whole image."""
    counts = {  # parameters (M), multiply-adds (G) with 3 and 5 looks; of the plain network
        "b0": ((5.558451, 1.5412, 2.3111), (4.305764, 1.536513408)),
        "b1": ((8.069459, 2.276290090, 3.413855210), (6.831432, 2.270417280)),
        "b2": ((9.549017, 2.633603842, 3.949708770), (8.050362, 2.626562176)),
        "b3": ((12.872623, 3.848662402, 5.772189602), (11.090928, 3.839417216)),
        "b4": ((20.456467, 6.013020378, 9.018466458), (18.032416, 5.998679904)),
    }
    cpu = {"b0": ((59.0, 45.0), (79.0, 65.0)), "b4": ((171.0, 135.0), (226.0, 202.0))}
    for size, ((params, three, five), (plain_params, plain)) in counts.items():
        at_3, at_5 = cpu.get(size, (None, None))
        looks: dict[Looks, Published] = {
            3: Published(three, params, cpu_ms=at_3),
            5: Published(five, params, cpu_ms=at_5),
        }
        yield Row(f"tnet_efficientnet_{size}.cub", 448, looks)
        yield Row(f"efficientnet_{size}.cub", 448, {(): Published(plain, plain_params)})


def _satellite() -> Iterator[Row]:
    yield Row("tnet_efficientnet_b0.fmow_448", 448, {2: Published(1.155036194, 4.559592, cpu_ms=(49, 33))})
    yield Row("tnet_efficientnet_b0.fmow_896", 896, {(2, 1): Published(1.925172436, 4.559592, cpu_ms=(80, 60))})
    for side, gmacs, cpu in ((224, 0.3846, (20, 10.5)), (448, 1.5363, (50, 43)), (896, 6.1432, (183, 177))):
        yield Row("efficientnet_b0.fmow", side, {(): Published(gmacs, 4.128986, cpu_ms=cpu)}, base_px=side)


def _imagenet() -> Iterator[Row]:
    tnet = zip(
        (0, 1, 2, 3, 5), (1.824065266, 3.627919282, 5.431773298, 7.235627314, 10.843335346),
        (0.74, 1.43, 2.09, 2.74, 3.96), (0.46, 0.57, 0.69, 0.95, 1.47),
        (None, (70, 44), (90, 65), (108, 89), (148, 122)), strict=True,
    )  # fmt: skip
    looks: dict[Looks, Published] = {n: Published(g, 21.859950, ms, gb, cpu) for n, g, ms, gb, cpu in tnet}
    yield Row("tnet_bagnet77.imagenet", 224, looks)
    yield Row("bagnet77.imagenet", 224, {(): Published(18.423134976, 20.546664, 5.94, 2.62, (224, 192))})
    yield Row("bagnet77_lowd.imagenet", 224, {0: Published(14.109, 20.628393)})
    saccader: dict[Looks, Published] = {
        n: Published(g, 35.583913, ms, gb)
        for n, g, ms, gb in (
            (2, 19.5, 7.31, 2.58),
            (6, 19.5, 7.32, 2.52),
            (20, 19.51, 7.36, 2.53),
            (30, 19.51, 7.36, 2.51),
        )
    }
    yield Row("saccader.imagenet", 224, saccader)
    dram: dict[Looks, Published] = {
        n: Published(g, 45.610219, ms, gb)
        for n, g, ms, gb in (
            (2, 1.86, 3.43, 0.45),
            (4, 3.1, 3.92, 0.44),
            (8, 5.58, 4.61, 0.45),
            (20, 13.03, 7.58, 0.46),
        )
    }
    yield Row("dram.imagenet", 224, dram)


def _digits() -> Iterator[Row]:
    """Patch models on megapixel digits; for IPS the cost of the selection is published."""
    yield Row("ips.digits", 1500, {100: Published(47.0)})
    yield Row("attention_sampling.digits", 1500, {10: Published()})


@dataclass(frozen=True)
class _Kept:
    """What is kept of a row."""

    costs: tuple[Cost, ...]


def measure(row: Row, config: CostsConfig) -> tuple[Cost, ...]:
    """What a row costs, at each number of looks."""
    model = create_model(row.name, **({} if row.base_px is None else {"base_px": row.base_px})).eval()
    with tempfile.TemporaryDirectory() as place:
        folder = save_model(model, Path(place) / "model")
        looks = [item for item in row.looks if item != ()]
        return tuple(
            measure_costs(
                model,
                folder,
                (row.side_px, row.side_px),
                looks=looks,
                policies=[LEARNED],
                config=config,
                progress=False,
            )
        )


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(rows: list[tuple[Row, tuple[Cost, ...]]], config: CostsConfig) -> str:
    """Return all rows, measured beside published values."""
    devices = devices_here(config.devices)
    header = ["model", "image px", "#locs", "parameters (M)", "published", "multiply-adds (G)", "published"]
    header += [f"ms/image, {device}, batch {size}" for device in devices for size in config.batch_sizes]
    header += [f"peak MB, {device}, batch {config.memory_batch_size}" for device in devices]
    header += ["published: GPU ms/image", "GPU GB", "reference on CPU: ms, batch 1 / 16"]
    body = []
    for row, costs in rows:
        for (looks, published), cost in zip(row.looks.items(), costs, strict=True):
            cells = [row.name, str(row.side_px), "-" if looks == () else cost.setting.looks]
            cells += [f"{cost.total_parameters / 1e6:.3f}", _number(published.params_m, 3)]
            cells += [f"{cost.macs / 1e9:.3f}", _number(published.gmacs, 3)]
            cells += [f"{time.median_ms:.1f} ({time.min_ms:.1f} to {time.max_ms:.1f})" for time in cost.times]
            cells += [f"{use.peak_bytes / 1e6:.0f}" for use in cost.memory]
            cells += [_number(published.gpu_ms), _number(published.gpu_gb)]
            cells.append("-" if published.cpu_ms is None else f"{published.cpu_ms[0]:g} / {published.cpu_ms[1]:g}")
            body.append(cells)
    return markdown_table(header, body)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/full_size"))
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    config = CostsConfig(batch_sizes=tuple(args.batch_sizes), repeats=args.repeats, memory_batch_size=1)
    here = {**machine(), "config": to_plain(config)}
    found = []
    for row in [*_imagenet(), *_satellite(), *_birds(), *_digits()]:
        if args.only and row.name not in args.only:
            continue
        path = make_folder(args.out) / f"{row.label.replace(' ', '_')}.json"
        kept = json.loads(path.read_text()) if path.is_file() else {}
        if kept.get("machine") != here:
            print(f"measuring {row.label}", flush=True)
            kept = {"machine": here, "found": to_plain(_Kept(measure(row, config)))}
            write_text(path, json.dumps(kept))
        found.append((row, parse_dataclass(_Kept, kept["found"], str(path)).costs))
    print(table(found, config))
    print(
        f"{', '.join(f'{key} {value}' for key, value in machine().items())}, Python {platform.python_version()}, "
        f"{datetime.datetime.now(datetime.UTC).date()}. Times: median (fastest to slowest) of {config.repeats} passes "
        "after 2 to warm up. Parameters with running statistics of batch norm. "
        "Memory: peak of a fresh process over that with the model loaded, batch 1."
    )


if __name__ == "__main__":
    main()
