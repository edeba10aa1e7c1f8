"""``tnet view``: images and looks in a browser."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tnet.cli import common
from tnet.errors import ConfigError

_ROOT_HELP = "Folder of images, with its subfolders. Nothing outside it is shown."
_HOST_HELP = "Address to listen on. With another than the default, everyone who reaches this machine sees the images."
_LABELS_HELP = "Table (.csv) to which typed labels are appended: path, label, time. [default: none are kept]"
_PREDICTIONS_HELP = "Predictions that `tnet predict --out` wrote (.csv, .jsonl), to filter by wrong, unsure and class."
_TRUTH_HELP = "True classes: a table (.csv, .parquet) with columns path and label, or a folder with one per class."


def view(
    model: common.ModelArgument,
    root: Annotated[Path, typer.Option(help=_ROOT_HELP)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8765,
    host: Annotated[str, typer.Option(help=_HOST_HELP)] = "127.0.0.1",
    labels: Annotated[Path | None, typer.Option(help=_LABELS_HELP)] = None,
    predictions: Annotated[Path | None, typer.Option(help=_PREDICTIONS_HELP)] = None,
    truth: Annotated[Path | None, typer.Option(help=_TRUTH_HELP)] = None,
    device: common.DeviceOption = "auto",
    read: common.ReadOption = None,
    bands: common.BandsOption = None,
    value_range: common.RangeOption = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Show images of any size in a browser, run the model on them, and see where it looks.

    Serves one page on this machine until Ctrl-C. Needs the extra `view`: pip install 'tnet[view]'.
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise ConfigError("tnet view needs FastAPI and uvicorn, which are not installed; run: pip install 'tnet[view]'")

    import webbrowser

    from tnet.models.io import load_for_inference
    from tnet.view.app import create_app
    from tnet.view.serve import address_of, listen, serve

    reading = common.parse_reading(common.data_of(common.recipe_of(model)), read, bands, value_range)
    if host not in ("127.0.0.1", "localhost", "::1"):
        common.say("warning: there is no password; everyone who reaches this machine can see the images", err=True)
    with listen(host, port) as listener:  # before the model is loaded, which takes longer
        network = load_for_inference(model, device=common.pick_device(device))
        app = create_app(
            network, root, name=model.resolve().name, host=host, read=reading, predictions=predictions, truth=truth,
            labels=labels,
        )  # fmt: skip
        address = address_of(listener)
        common.say(f"{address}  (Ctrl-C to end)")
        sys.stdout.flush()
        has_screen = sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
        if open_browser and has_screen:
            webbrowser.open(address)
        serve(app, listener)
