"""Difference between the published models and the numbers of the reference implementation, in 32 and 64 bits.

    python benchmarks/parity.py                        # the narrow forms, a minute
    python benchmarks/parity.py --full                 # the full-size models too
    TNET_GOLDEN=folder python benchmarks/parity.py     # against all golden data

Prints a Markdown table. The 64-bit columns show how much of a difference is the reference's own rounding: they are the
same formula without our rounding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.golden import FULL, SHIFT, TINY, Golden, probe, six_steps, tensorflow_layout, variables

from tnet.evaluation.report import markdown_table
from tnet.objectives import Objective


def evaluation(golden: Golden, dtype: torch.dtype) -> tuple[float, float, bool]:
    """Return the largest difference of logits (as a share) and location probabilities, and whether regions agree."""
    with torch.no_grad():
        output = golden.model().to(dtype)(golden.images("eval").to(dtype), golden.looks)
    expected = golden.eval["logits"]
    logits = np.abs(output.logits.numpy() - expected).max() / np.abs(expected).max()
    by_level = enumerate(output.location_probs_by_level())
    probs = [np.abs(p.numpy() - golden.eval[f"l{level}_location_probs"]).max() for level, p in by_level]
    same = all(
        np.array_equal(output.regions.at_level(level).position_yx.numpy(), golden.eval[f"l{level}_pos_yxs"][:, :2])
        for level in range(1, output.regions.depth + 1)
    )
    return float(logits), float(max(probs, default=0.0)), same


def training(golden: Golden, dtype: torch.dtype) -> tuple[float, float, float]:
    """Return the relative difference of the loss, and the largest of a gradient's norm and random projection."""
    model = golden.model().to(dtype).train()
    output = model(golden.images("train").to(dtype), golden.looks)
    loss = Objective(golden.objective()).train()(output, torch.from_numpy(golden.train["labels"]).long(), model)
    loss.total.backward()
    gradients = {v: tensorflow_layout(v, p.grad) for v, p in variables(model) if getattr(p, "grad", None) is not None}
    skipped = {*golden.noise["zero_gradient_variables"], SHIFT}
    norms, projections = [], []
    for row, variable in enumerate(golden.train["grad_names"].tolist()):
        if variable in skipped:
            continue
        norm = float(golden.train["grad_norm"][row])
        dot = float((gradients[variable] * probe(variable, gradients[variable].shape)).sum())
        norms.append(abs(float(np.linalg.norm(gradients[variable])) / norm - 1))
        projections.append(abs(dot - float(golden.train["grad_dot"][row])) / norm)
    expected = float(golden.train["total_loss"])
    return abs(float(loss.total.detach()) / expected - 1), max(norms), max(projections)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the full-size models too")
    arguments = parser.parse_args()
    rows = []
    for name in (*TINY, *(FULL if arguments.full else ())):
        golden = Golden(name)
        logits, probs, same = evaluation(golden, torch.float32)
        cells = [name, f"{logits:.0e}", f"{probs:.0e}" if golden.looks else "-", "yes" if same else "NO"]
        for dtype in (torch.float32, torch.float64):
            loss, norm, projection = training(golden, dtype)
            cells += [f"{loss:.0e}", f"{norm:.0e} / {projection:.0e}"]
        for dtype in (torch.float32, torch.float64):
            if "traj_loss" not in golden.train:
                cells.append("-")
                continue
            losses, _, _ = six_steps(golden, dtype)
            cells.append(f"{np.abs(np.array(losses) - golden.train['traj_loss']).max():.0e}")
        rows.append(cells)
        print(name, file=sys.stderr)
    heads = ["configuration", "logits", "location probabilities", "same regions"]
    heads += ["loss", "gradients", "loss, 64 bits", "gradients, 64 bits", "six steps", "six steps, 64 bits"]
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s)\n")
    print(markdown_table(heads, rows))


if __name__ == "__main__":
    main()
