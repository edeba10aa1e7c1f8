"""Files of weights from anywhere: nothing in them runs, and what does not fit is named."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tnet.errors import CheckpointError
from tnet.weights import check_state, read_tensors

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1, 2])}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.ckpt", "weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_state_dict(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / name))


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    assert same(read_tensors(tmp_path / "weights.safetensors"))


def test_a_state_dict_beside_other_plain_values(tmp_path: Path) -> None:
    """As training frameworks save it; what else they keep beside it does not matter."""
    torch.save({"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "weights.pth")
    assert same(read_tensors(tmp_path / "weights.pth"))


class Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, nested: bool, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    attack: Any = Attack(trace)
    torch.save({"state_dict": STATE, "more": attack} if nested else attack, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="weights.pth is not a plain state dict, and loading it could run code"):
        read_tensors(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the attack itself works
    assert trace.exists()


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(CheckpointError, match="weights.pth"):
        read_tensors(path)
    assert not trace.exists()


def test_a_whole_model_is_not_a_state_dict(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="save only the tensors of it"):
        read_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("left", [0, 1, 7, 40, 100, -40, -1])
def test_a_truncated_file(tmp_path: Path, suffix: str, left: int) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_tensors(path)


@pytest.mark.parametrize(
    "content", [b"not weights at all\n", b"\x80\x02", b"PK\x03\x04", bytes(range(256)), b"\0" * 64]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_something_else(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_tensors(path)


@pytest.mark.parametrize(
    "value", [[torch.zeros(2)], {"a": 1}, {"a": torch.zeros(1), "epoch": 3}, torch.zeros(2), "text"]
)
def test_something_other_than_named_tensors(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="weights.pth does not hold named tensors; give a state dict"):
        read_tensors(tmp_path / "weights.pth")


def test_names_that_are_not_text(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="does not hold named tensors"):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no file of weights .*; check the path"):
        read_tensors(tmp_path / name)


# --- what does not fit a model


def test_a_state_that_fits_passes() -> None:
    check_state(STATE, dict(reversed(STATE.items())), "file")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, r"file lacks tensor 'layer.weight' \(2 missing, 0 unknown in all\)"),
        ({"layer.weight": torch.zeros(2, 3)}, r"file lacks tensor 'layer.bias' \(1 missing, 0 unknown in all\)"),
        (STATE | {"head": torch.zeros(1)}, r"file has an unknown tensor 'head' \(0 missing, 1 unknown in all\)"),
        ({"x": torch.zeros(1)}, r"file lacks tensor 'layer.weight' \(2 missing, 1 unknown in all\)"),
        (STATE | {"layer.bias": torch.zeros(3)}, r"'layer.bias' has shape \[3\] but the model needs \[2\]"),
        # The same number of values is not the same shape.
        (
            STATE | {"layer.weight": torch.zeros(3, 2)},
            r"'layer.weight' has shape \[3, 2\] but the model needs \[2, 3\]",
        ),
    ],
)
def test_the_tensor_that_does_not_fit_is_named(found: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_state(STATE, found, "file")
