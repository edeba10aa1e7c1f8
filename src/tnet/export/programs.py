"""PyTorch's exporters, quiet, and with errors of one sentence."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tnet.errors import ConfigError, ExportError, first_line
from tnet.export.runtime import Run

DEFAULT_OPSET = 20
_OPSETS = (18, 23)  # that PyTorch's exporter knows; older ones would need conversions that can fail


def check_opset(opset: int) -> None:
    """Raise ConfigError for a version of the operators that cannot be exported."""
    oldest, newest = _OPSETS
    if not oldest <= opset <= newest:
        problem = f"opset {opset} is too {'old' if opset < oldest else 'new'}"
        raise ConfigError(f"{problem}; give {oldest} to {newest} with --opset, or omit it for {DEFAULT_OPSET}")


def trace(module: nn.Module, given: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]]) -> ExportedProgram:
    """Record a module as a program; ``dynamic`` names the axes of each input that may have any size.

    Raises:
        ExportError: a layer cannot be recorded.
    """
    sizes = {name: Dim(name, min=1) for axes in dynamic.values() for name in axes.values()}
    shapes = {key: {axis: sizes[name] for axis, name in axes.items()} for key, axes in dynamic.items()}
    try:
        with _quiet():
            return torch.export.export(module, (), dict(given), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of any type, from any layer of a backbone
        raise ExportError(f"PyTorch cannot export the model ({first_line(error)}); try another backbone") from None


def write_onnx(
    program: ExportedProgram, path: Path, outputs: Sequence[str], opset: int, metadata: Mapping[str, Any]
) -> None:
    """Write a program as one ONNX file, with metadata as JSON by key.

    Raises:
        ExportError: an operator has no ONNX form.
    """
    try:
        with _quiet():
            table: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.sort.stable: _sort_stable}
            converted = torch.onnx.export(
                program, dynamo=True, opset_version=opset, output_names=outputs, verbose=False,
                custom_translation_table=table,
            )  # fmt: skip
            assert converted is not None
            for key, value in metadata.items():
                converted.model.metadata_props[f"tnet.{key}"] = json.dumps(value)
            converted.save(path, external_data=False)
    except Exception as error:  # of any type; its message is a page of advice to developers of PyTorch
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        problem = f"the model cannot be converted to ONNX ({reason})"
        raise ExportError(f"{problem}; try another --opset, or --format torch-export") from None


def save_program(program: ExportedProgram, path: Path, name: str, metadata: Mapping[str, Any]) -> Run:
    """Write a program for ``torch.export.load`` with metadata as the file ``name`` in it, and load it again."""
    with _quiet():
        torch.export.save(program, path, extra_files={name: json.dumps(metadata)})
        return torch.export.load(path).module()


def _sort_stable(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Sort as ``torch.sort(stable=True)`` does: TopK puts the lower index first among equal values."""
    from onnxscript import opset18

    op: Any = opset18  # typed for tensors, used on symbols
    size = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings and logs, which are for developers of PyTorch."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
