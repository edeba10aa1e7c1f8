"""Run exported files: one session per file, of ONNX Runtime or OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnet.errors import ConfigError, ExportError, first_line

Engine = Literal["onnx", "openvino"]
Run = Callable[..., dict[str, Tensor]]
"""Takes tensors by the names of the inputs, and returns the outputs by name."""

_MOST_SHAPES = 4  # of the inputs of a file, for each of which OpenVINO compiles it, in about half a second
_LIBRARIES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


def require(*extras: str) -> None:
    """Raise ConfigError if the libraries of an extra of tnet are not installed."""
    for extra in extras:
        missing = [library for library in _LIBRARIES[extra] if find_spec(library) is None]
        if missing:
            raise ConfigError(f"{missing[0]} is needed but is not installed; run: pip install 'tnet[{extra}]'")


def open_session(path: Path, engine: Engine) -> Run:
    """Load an exported file (``.onnx``, or ``.xml`` of OpenVINO), with as many threads as PyTorch uses.

    Raises:
        ConfigError: the engine is unknown or not installed.
        ExportError: the file is missing, damaged or not supported.
    """
    if engine not in get_args(Engine):
        raise ConfigError(f"engine is {str(engine)[:40]!r}; give one of {', '.join(get_args(Engine))}")
    require(engine)
    if not path.is_file():
        raise ExportError(f"{path} does not exist; export the model again")
    try:
        return _onnxruntime(path) if engine == "onnx" else _openvino(path)
    except Exception as error:  # the libraries raise several types, none of them public
        raise ExportError(f"{path} cannot be loaded ({first_line(error)}); export the model again") from None


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs, outputs = ([item.name for item in items] for items in (session.get_inputs(), session.get_outputs()))

    def run(**given: Tensor) -> dict[str, Tensor]:
        results = session.run(None, {name: _array(given[name]) for name in inputs})
        return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(outputs, results, strict=True)}

    return run


def compile_openvino(model: Any, shapes: Mapping[str, Any] | None = None) -> Any:
    """Compile an ``openvino.Model`` for inputs of these shapes, by name, or of any that it takes.

    For fixed shapes it is faster, and takes a fraction of the memory.
    """
    import openvino

    if shapes is not None:
        model = model.clone()
        model.reshape(shapes)
    # Some processors would choose bfloat16.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(model, "CPU", options)


def _openvino(path: Path) -> Run:
    import openvino

    model = openvino.Core().read_model(str(path))
    of_any_shape = compile_openvino(model)
    of_shapes: dict[tuple[tuple[int, ...], ...], Any] = {}

    def compiled_for(inputs: dict[str, NDArray[Any]]) -> Any:
        shapes = tuple(array.shape for array in inputs.values())
        if shapes not in of_shapes:
            wanted = {name: openvino.PartialShape(array.shape) for name, array in inputs.items()}
            if len(of_shapes) >= _MOST_SHAPES or not all(
                item.get_partial_shape().compatible(wanted[item.any_name]) for item in model.inputs
            ):
                return of_any_shape  # which says what is wrong with the inputs
            of_shapes[shapes] = compile_openvino(model, wanted)
        return of_shapes[shapes]

    def run(**given: Tensor) -> dict[str, Tensor]:
        inputs = {item.any_name: _array(given[item.any_name]) for item in model.inputs}
        compiled = compiled_for(inputs)
        results: Any = compiled(inputs, share_inputs=True, share_outputs=True)  # outputs are copied below
        return {item.any_name: torch.from_numpy(np.array(results[item])) for item in compiled.outputs}

    return run


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().contiguous().numpy()
