"""Run the demo with several seeds: do its claims hold every time?

    python benchmarks/demo_seeds.py --out runs/demo_seeds --seeds 0 1 2 3

Finished seeds are not run again. Writes ``table.md`` into the output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run the demo for each seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    arguments = parser.parse_args()
    command = "from tnet.cli.main import main; main()"
    lines = [
        "| seed | 0 looks | 3 looks | 3 random looks | downsized | full image | holds | multiply-adds | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    results = {}
    for seed in arguments.seeds:
        folder = arguments.out / f"seed{seed}"
        if not (folder / "results.json").is_file():
            subprocess.run(
                [sys.executable, "-c", command, "demo", "--seed", str(seed), "--out", str(folder), "--no-progress"],
                check=True,
                env=os.environ,
            )
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        rows = {(row["total_looks"], row["policy"]): row for row in results["rows"]["TNet"]}
        small, full = results["rows"]["downsized"][0], results["rows"]["full"][0]
        cells = [rows[0, "none"], rows[3, "topk"], rows[3, "random"], small, full]
        held = sum(claim["met"] for claim in results["claims"])
        shown = [f"{100 * row['accuracy']:.1f}" for row in cells]
        macs = f"1/{full['macs'] / rows[3, 'topk']['macs']:.0f} of the full image's"
        minutes = f"{results['seconds'] / 60:.1f}"
        lines.append(f"| {seed} | {' | '.join(shown)} | {held} of {len(results['claims'])} | {macs} | {minutes} |")
    lines += ["", f"Accuracy in percent on {cells[0]['images']} test images. {results['machine']}, {results['date']}."]
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
