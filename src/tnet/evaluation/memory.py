"""Peak memory of a forward pass, measured in a separate process.

On the CPU: how far the resident memory of a fresh process rises above its level with the model loaded (images,
activations, buffers that libraries allocate on the first pass). On CUDA: PyTorch's peak allocation (weights, images,
activations).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tnet.errors import ConfigError
from tnet.models.io import load_model
from tnet.models.registry import create_model

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_bytes(
    model: str | Path,
    image_size_hw: tuple[int, int],
    looks: int | Sequence[int] | None = None,
    *,
    policy: str | None = None,
    batch_size: int = 1,
    device: str = "cpu",
    timeout_s: float = 1800.0,
) -> int:
    """Measure the peak memory of one forward pass in evaluation mode.

    Args:
        model: folder of a saved model or of a run, or name of a registered model.
        image_size_hw: height and width of the images (``uint8`` noise in memory), pixels.
        looks: number of looks; see the model's ``forward``.
        policy: how locations are chosen; see the model's ``forward``.
        batch_size: number of images.
        device: device to run on.
        timeout_s: time limit, seconds.

    Raises:
        ConfigError: the process failed or exceeded the time limit.
    """
    job = {
        "model": str(model), "registered": isinstance(model, str) and not Path(model).is_dir(),
        "looks": looks if looks is None or isinstance(looks, int) else list(looks), "policy": policy,
        "size_hw": list(image_size_hw), "batch_size": batch_size, "device": device,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    # Blocks above 128 KiB always go back to the system when freed, so that the peak does not depend on earlier frees.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-P", "-m", "tnet.evaluation.memory"]
    try:
        done = subprocess.run(
            command, input=json.dumps(job), capture_output=True, text=True, timeout=timeout_s, env=environment,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        problem = f"memory of {model} could not be measured within {timeout_s:g} s"
        raise ConfigError(f"{problem}; set costs.memory_batch_size lower, or 0") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        reason = f"ended by signal {-done.returncode}" if done.returncode < 0 else last[:300]
        problem = f"memory of {model} could not be measured with {batch_size} image(s) on {device} ({reason})"
        raise ConfigError(f"{problem}; set costs.memory_batch_size lower, or 0")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _measure(job: dict[str, Any]) -> int:
    """Run in the separate process."""
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    model = create_model(job["model"]) if job["registered"] else load_model(job["model"])
    model = model.to(device).eval()
    looks = tuple(job["looks"]) if isinstance(job["looks"], list) else job["looks"]
    before = reset_peak_bytes()
    shape = (job["batch_size"], model.config.in_channels, *job["size_hw"])
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    with torch.inference_mode():
        model(images, looks=looks, policy=job["policy"])
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return max(0, peak_bytes() - before)


def reset_peak_bytes() -> int:
    """Forget the peak so far, and return the resident memory from which the next one rises.

    Where the peak cannot be reset (not Linux, or not permitted), it is that of everything so far, such as loading.
    """
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far.

    Not ``ru_maxrss`` on Linux, which begins with what the process that started this one held.
    """
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        raise ConfigError("peak memory cannot be read on this system; set costs.memory_batch_size to 0") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"bytes": _measure(json.load(sys.stdin))}) + "\n")
