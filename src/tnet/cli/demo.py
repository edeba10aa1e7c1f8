"""``tnet demo``: every step once, on synthetic images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tnet.cli.common import ProgressOption, say


def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results; must be new or empty.")] = Path("demo_run"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="Only check that it works, in seconds.")] = False,
    progress: ProgressOption = True,
) -> None:
    """Train, compare, predict and explain on synthetic images, offline, and write a page with tables and figures.

    Takes under 10 minutes on 2 cores. The images have a megapixel, with one handwritten digit among clutter.
    """
    from tnet.demo.page import next_commands
    from tnet.demo.run import run_demo

    try:
        result = run_demo(out, seed=seed, smoke=smoke, progress=progress, say=say)
    except KeyboardInterrupt as stop:
        stop.add_note(f"a demo cannot be resumed; remove {out}, and start again")
        raise
    say("")
    for claim in result.claims:
        say(f"  {'holds       ' if claim.met else 'DOES NOT HOLD'}  {claim.text}: {claim.measured}")
    if smoke:
        say("  (a smoke run trains for seconds; its numbers mean nothing)")
    say(f"\n{result.seconds / 60:.1f} min. Open the page: {result.page.resolve()}")
    say("\nNext, on your own images:")
    for command, what in next_commands():
        say(f"  {command}\n      {what}")
