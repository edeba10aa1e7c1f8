"""Weight files: read without unpickling, and checked against a model before loading."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tnet.errors import CheckpointError
from tnet.remote import check_local


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a ``.safetensors`` file or a PyTorch file that holds a plain state dict.

    Raises:
        CheckpointError: the file is missing, damaged, or contains anything but tensors.
    """
    check_local(path, CheckpointError)
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # Torch warns its developers of unusual pickle protocols; users get our error.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        remedy = "loading it could run code; save only its tensors"
        raise CheckpointError(f"{path} is not a plain state dict, and {remedy}") from None
    except Exception as error:  # on damaged files, and on files of another format, unpicklers raise almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason}); give a .safetensors file or a state dict, or copy it again"
        ) from None
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise CheckpointError(f"{path} does not hold named tensors; give a state dict")
    return dict(tensors)


def check_state(
    expected: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    source: str,
    remedy: str = "use the config.json that was saved with them",
) -> None:
    """Check that the tensors of file ``source`` fit a model's, before loading.

    Raises:
        CheckpointError: a tensor is missing, unknown, or has another shape; the message ends with ``remedy``.
    """
    why = f"these are weights of another model; {remedy}"
    missing = [name for name in expected if name not in loaded]
    unknown = [name for name in loaded if name not in expected]
    if missing or unknown:
        name, what = (missing[0], "lacks") if missing else (unknown[0], "has an unknown")
        counts = f"{len(missing)} missing, {len(unknown)} unknown in all"
        raise CheckpointError(f"{source} {what} tensor {name!r} ({counts}): {why}")
    for name, tensor in expected.items():
        if loaded[name].shape != tensor.shape:
            shapes = f"shape {list(loaded[name].shape)} but the model needs {list(tensor.shape)}"
            raise CheckpointError(f"{source}: tensor {name!r} has {shapes}: {why}")
