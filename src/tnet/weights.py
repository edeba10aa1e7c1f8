"""Weight files: read without unpickling, and checked against a model before loading."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, no_type_check

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tnet.errors import CheckpointError, ConfigError
from tnet.remote import check_local

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


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
        reason = (str(error).splitlines() or [""])[0][:200]
        reason = reason if " " in reason else "it is not a file of PyTorch's"  # a KeyError of 101 for text
        advice = "give a .safetensors file or a state dict, or copy it again"
        raise CheckpointError(f"{path} cannot be read as weights ({reason}); {advice}") from None
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    pairs = tensors.items() if isinstance(tensors, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
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
        CheckpointError: a tensor is missing, unknown, or has another shape, and the message ends with ``remedy``; or it
            has values that a model cannot use.
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
    check_values(expected, loaded, source)


def check_values(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor], source: str) -> None:
    """Check that the tensors of file ``source`` have the kind of numbers that a model has there, and are finite.

    Raises:
        CheckpointError: a tensor is quantised, complex, truth values or otherwise of another kind, or not finite.
    """
    for name, tensor in loaded.items():
        dtype = expected[name].dtype
        kinds = next((kinds for kinds in (_FLOATS, _WHOLE) if dtype in kinds), (dtype,))
        if tensor.dtype not in kinds or tensor.layout != torch.strided or tensor.is_meta:
            types = f"of type {_type(tensor)}, but the model needs {_type(expected[name])}"
            remedy = "save the weights as float32, float16 or bfloat16, without quantisation or sparsity"
            raise CheckpointError(f"{source}: tensor {name!r} is {types}; {remedy}")
        # A sum shows in one pass whether there is a NaN or infinity, unless it overflows itself.
        if tensor.is_floating_point() and not (tensor.sum().isfinite() or tensor.isfinite().all()):
            remedy = "training diverged, or the file is damaged; use an earlier checkpoint"
            raise CheckpointError(f"{source}: tensor {name!r} has NaN or infinite values; {remedy}")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class MemoryLimit(TorchFunctionMode):
    """Raises an error before a model takes more memory, or makes more tensors, than its limits while it is built.

    Untrusted configurations can describe models of any size, through many keys.
    """

    def __init__(self, max_bytes: float, max_tensors: float, problem: str) -> None:
        super().__init__()
        self.max_bytes, self.max_tensors, self.problem = max_bytes, max_tensors, problem

    @no_type_check  # checked in tests, it would take half of the time of building a model
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count what functions that make tensors allocate."""
        kwargs = kwargs or {}
        if func in _FACTORIES and str(kwargs.get("device")) != "meta":
            plain = {key: value for key, value in kwargs.items() if key not in ("out", "generator", "pin_memory")}
            self.max_bytes -= func(*args, **{**plain, "device": "meta"}).nbytes
            self.max_tensors -= 1
            if min(self.max_bytes, self.max_tensors) < 0:
                raise ConfigError(self.problem)
        return func(*args, **kwargs)


_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.eye}
