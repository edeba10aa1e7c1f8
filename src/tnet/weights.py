"""Files of weights: read without unpickling, and compared with a model before loading."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tnet.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors from ``.safetensors``, or from a PyTorch file that holds nothing but a state dict.

    Raises:
        CheckpointError: missing, damaged, or a file that holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file of weights {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # Of a pickle protocol that torch does not write: advice to its developers, beside our own error.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); copy it again") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is not a plain state dict, and loading it could run code in it; save only the tensors of it"
        ) from None
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise CheckpointError(f"{path} does not hold named tensors; give a state dict")
    return dict(tensors)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_state(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    source: str,
    remedy: str = "use the config.json that was saved with them",
) -> None:
    """Say which tensor does not fit before loading.

    Args:
        expected: the model's own.
        found: in the file.
        source: the file.
        remedy: what to do about weights of another model.

    Raises:
        CheckpointError: a missing, superfluous or differently shaped tensor.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        name, what = (missing[0], "lacks") if missing else (extra[0], "has an unknown")
        raise CheckpointError(
            f"{source} {what} tensor {name!r} ({len(missing)} missing, {len(extra)} unknown in all): these are weights "
            f"of another model; {remedy}"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: tensor {name!r} has shape {list(found[name].shape)} but the model needs "
                f"{list(tensor.shape)}: these are weights of another model; {remedy}"
            )
