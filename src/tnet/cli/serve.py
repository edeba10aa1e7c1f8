"""``tnet serve``: an HTTP endpoint for programs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from tnet.cli import common
from tnet.errors import ConfigError

_ROOT_HELP = "Folder of images that clients may name instead of sending them. [default: none]"
_HOST_HELP = "Address to listen on. With another than the default, everyone who reaches this machine can send images."


def serve(
    model: common.ModelArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8766,
    host: Annotated[str, typer.Option(help=_HOST_HELP)] = "127.0.0.1",
    root: Annotated[Path | None, typer.Option(help=_ROOT_HELP)] = None,
    batch_size: common.BatchSizeOption = 8,
    wait_ms: Annotated[float, typer.Option(min=0, max=1000, help="Time that an image waits for others.")] = 5.0,
    waiting: Annotated[int, typer.Option(min=1, max=10_000, help="Requests at a time; more get status 503.")] = 64,
    max_mb: Annotated[float, typer.Option(min=0.001, max=4096, help="Size of an image that is sent.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Time to decode an image that is sent.")] = 20,
    decoders: Annotated[int, typer.Option(min=1, max=256, help="Processes that decode images.")] = 1,
    device: common.DeviceOption = "auto",
    precision: common.PrecisionOption = "fp32",
    allow_small: common.SmallOption = False,
) -> None:
    """Answer HTTP requests with predictions, in batches across requests.

    POST /predict with the bytes of an image, GET /health, GET /metrics (Prometheus). SIGTERM and Ctrl-C finish the
    requests under way. Needs the extra `view`: pip install 'tnet[view]'.
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise ConfigError(
            "tnet serve needs FastAPI and uvicorn, which are not installed; run: pip install 'tnet[view]'"
        )

    import uvicorn

    from tnet.inference.predictor import run_read_options
    from tnet.models.io import load_for_inference
    from tnet.serve.app import Limits, create_app
    from tnet.view.safety import allowed_hosts
    from tnet.view.serve import address_of, listen

    if root is not None and not root.is_dir():
        raise ConfigError(f"--root {root} is not a folder; correct the path")
    with listen(host, port) as listener:
        network = load_for_inference(model, device=common.pick_device(device), precision=precision)
        hosts, any_address = allowed_hosts(host)
        limits = Limits(round(max_mb * 2**20), waiting, seconds, batch_size, wait_ms / 1000, decoders)
        app = create_app(
            network, run_read_options(model), hosts=hosts, any_address=any_address, root=root, limits=limits,
            allow_small=allow_small,
        )  # fmt: skip
        common.say(f"{address_of(listener)}predict  (Ctrl-C to end)")
        config = uvicorn.Config(
            app, ws="none", log_level="critical", log_config=None, access_log=False, proxy_headers=False,
            server_header=False, timeout_graceful_shutdown=30,
        )  # fmt: skip
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt as stop:
            stop.add_note("the requests under way were answered")
            raise
