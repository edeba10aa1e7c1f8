"""Predictions by a Ray cluster, or by Ray on this machine: every actor holds the model and predicts whole parts."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from tnet.errors import ConfigError, ResourceError, TnetError, first_line
from tnet.inference.predictor import iter_predictions
from tnet.inference.progress import progress_bar
from tnet.inference.records import Prediction, Unreadable
from tnet.models.base import Model

_ANSWER_S = 10.0  # for a connection; Ray itself then waits for up to 40 s
_STORE_BYTES = 2**28  # of paths, results and the model; images do not go through it
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # attempts to reach a cluster; by default 20, which take a quarter of an hour
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def ray_engine(address: str | None = None) -> Callable[..., Iterator[Prediction | Unreadable]]:
    """Return what predicts like :func:`tnet.inference.predictor.iter_predictions`, on a Ray cluster.

    ``workers`` is then the greatest number of actors, 0 for one per GPU of the cluster, or per core if it has none; the
    ``device`` of each may be ``auto``. The nodes need tnet, and this working directory under the same path.

    Args:
        address: ``host:port`` of a cluster to which this machine belongs; ``None`` starts one on this machine, which
            ends with the predictions.

    Raises:
        ConfigError: Ray is not installed, or the address is none or does not answer; when called, the cluster cannot be
            used, or its nodes lack the working directory.
        ResourceError: when called, the cluster went away.
    """
    if find_spec("ray") is None:
        raise ConfigError("--engine ray needs Ray, which is not installed; run: pip install 'tnet[ray]'")
    if address is not None:
        match = re.fullmatch(r"\[?([\w.:-]{1,253}?)\]?:(\d{1,5})", address, re.ASCII)
        if match is None or not 0 < int(match[2]) < 2**16:
            raise ConfigError(f"--ray-address is {address[:200]!r}; give host and port, such as 10.0.0.5:6379")
        try:
            socket.create_connection((match[1], int(match[2])), _ANSWER_S).close()
        except (OSError, UnicodeError) as error:
            problem = f"no Ray cluster answers at {address} ({getattr(error, 'strerror', None) or error})"
            raise ConfigError(f"{problem}; correct --ray-address, or start the cluster") from None
    return partial(_predict, address=address)


def _predict(
    model: Model,
    images: Sequence[Path],
    *,
    address: str | None,
    parts: Sequence[int],
    workers: int,
    device: str,
    progress: bool,
    **options: Any,
) -> Iterator[Prediction | Unreadable]:
    with _connected(address, workers):
        import ray

        resources = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if resources.get("GPU") else "cpu"
        is_cpu = device == "cpu"
        most = workers or int(resources.get("CPU" if is_cpu else "GPU", 1)) or 1
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.execution_options.preserve_order = False, True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it says is raised too
        names = map(os.fsencode, images)
        tables = [pa.table({"path": pa.array([next(names) for _ in range(size)], pa.binary())}) for size in parts]
        found_by_part = ray.data.from_arrow(tables).map_batches(
            _Predictor,
            fn_constructor_args=(ray.put(model.cpu()), str(Path.cwd()), {**options, "device": device}),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            batch_size=None,  # all of a block, which is a part
            batch_format="pyarrow",
            num_cpus=1 if is_cpu else None,
            num_gpus=None if is_cpu else 1,
        )
        with progress_bar(progress) as bar:
            task = bar.add_task("predicting", total=len(images))
            try:
                block: Any  # a pyarrow table
                for block in found_by_part.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for found in map(pickle.loads, block["found"].to_pylist()):
                        if isinstance(found, TnetError):
                            raise found
                        yield from found
                        bar.advance(task, len(found))
            except ray.exceptions.RayTaskError:  # a fault in tnet
                raise
            except ray.exceptions.RayError as error:
                problem = f"the Ray cluster no longer predicts ({first_line(error)})"
                raise ResourceError(f"{problem}; look after its nodes, then run the command again") from None


class _Predictor:
    """Predicts parts in a process of the cluster."""

    def __init__(self, model: Any, folder: str, options: dict[str, Any]) -> None:
        import ray

        self.model, self.folder, self.options = ray.get(model), folder, options

    def __call__(self, part: pa.Table) -> pa.Table:
        """Return the predictions of a part, or the error that ended them, as one row; pickled, as Ray wraps errors."""
        found: list[Prediction | Unreadable] | TnetError
        try:
            os.chdir(self.folder)
            images = [Path(os.fsdecode(path)) for path in part["path"].to_pylist()]
            found = list(iter_predictions(self.model, images, **self.options, progress=False))
        except TnetError as error:
            found = error
        except FileNotFoundError:
            problem = f"{socket.gethostname()}, a node of the Ray cluster, has no folder {self.folder}"
            found = ConfigError(f"{problem}; run the command in a folder that all nodes share")
        return pa.table({"found": [pickle.dumps(found)]})


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, and leave it at the end."""
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    import ray

    local: dict[str, Any] = {"num_cpus": workers or None, "object_store_memory": _STORE_BYTES}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address or "local", include_dashboard=None if address else False, log_to_driver=False,
            logging_level=logging.CRITICAL, **({} if address else local),
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"the Ray cluster at {address} cannot be used" if address else "Ray cannot start on this machine"
        raise ConfigError(f"{where} ({first_line(error)}); see what Ray wrote to /tmp/ray, or omit --engine") from None
    if threading.current_thread() is threading.main_thread():  # Ray's handler would end the process silently
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)
    try:
        yield
    finally:
        ray.shutdown()
