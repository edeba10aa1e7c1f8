"""Untrusted weight files: nothing in them is run, and mismatches are named."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tnet.errors import CheckpointError, ConfigError
from tnet.weights import MemoryLimit, check_state, check_values, read_tensors

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1, 2])}


def same(loaded: dict[str, torch.Tensor]) -> bool:
    return loaded.keys() == STATE.keys() and all(torch.equal(loaded[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.ckpt", "weights"])
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_state_dict(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / name))


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.safetensors")
    assert same(read_tensors(tmp_path / "weights.safetensors"))


def test_state_dict_beside_other_plain_values(tmp_path: Path) -> None:
    """As training frameworks save it; other entries are ignored."""
    torch.save({"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "weights.pth")
    assert same(read_tensors(tmp_path / "weights.pth"))


class Attack:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code(tmp_path: Path, nested: bool, zipped: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    attack: Any = Attack(trace)
    torch.save({"state_dict": STATE, "more": attack} if nested else attack, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="weights.pth is not a plain state dict"):
        read_tensors(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the attack itself works
    assert trace.exists()


def test_bare_pickle(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(CheckpointError, match="weights.pth"):
        read_tensors(path)
    assert not trace.exists()


def test_pickled_model(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 3), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="model.pth is not a plain state dict"):
        read_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("left", [0, 1, 7, 40, 100, -40, -1])
def test_truncated_file(tmp_path: Path, suffix: str, left: int) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"not weights at all\n",
        b"tench\ngoldfish\n",
        b"background\ntench, Tinca tinca\n",
        b"\x80\x02",
        b"PK\x03\x04",
        bytes(range(256)),
        b"\0" * 64,
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_another_format(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_tensors(path)


@pytest.mark.parametrize(
    "value", [[torch.zeros(2)], {"a": 1}, {"a": torch.zeros(1), "epoch": 3}, torch.zeros(2), "text"]
)
def test_anything_but_named_tensors(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="weights.pth does not hold named tensors"):
        read_tensors(tmp_path / "weights.pth")


def test_names_that_are_not_strings(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="weights.pth does not hold named tensors"):
        read_tensors(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "."])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name))):
        read_tensors(tmp_path / name)


# --- mismatches


def test_matching_state() -> None:
    check_state(STATE, dict(reversed(STATE.items())), "file")


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ({}, r"'layer.weight' \(2 missing, 0 unknown"),
        ({"layer.weight": torch.zeros(2, 3)}, r"'layer.bias' \(1 missing, 0 unknown"),
        (STATE | {"head": torch.zeros(1)}, r"'head' \(0 missing, 1 unknown"),
        ({"x": torch.zeros(1)}, r"'layer.weight' \(2 missing, 1 unknown"),
        (STATE | {"layer.bias": torch.zeros(3)}, r"'layer.bias'.*\[3\].*\[2\]"),
        # The same number of values is not the same shape.
        (
            STATE | {"layer.weight": torch.zeros(3, 2)},
            r"'layer.weight'.*\[3, 2\].*\[2, 3\]",
        ),
    ],
)
def test_mismatch_names_the_tensor(loaded: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_state(STATE, loaded, "file")


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.zeros(2, 3, dtype=torch.int8), "type int8, but the model needs float32"),
        (torch.zeros(2, 3, dtype=torch.int64), "type int64"),
        (torch.zeros(2, 3, dtype=torch.bool), "type bool"),
        (torch.zeros(2, 3, dtype=torch.complex64), "type complex64"),
        (torch.zeros(2, 3, device="meta"), "type float32"),
        (torch.tensor([[0.0, 1, 2], [3, float("nan"), 5]]), "NaN or infinite"),
        (torch.tensor([[0.0, 1, 2], [3, float("inf"), float("-inf")]], dtype=torch.float16), "NaN or infinite"),
    ],
)
def test_values_that_no_model_can_use(tensor: torch.Tensor, problem: str) -> None:
    for check in (check_state, check_values):
        with pytest.raises(CheckpointError, match=f"file: tensor 'layer.weight' .*{problem}"):
            check(STATE, STATE | {"layer.weight": tensor}, "file")
    with pytest.raises(CheckpointError, match="tensor 'layer.bias' is of type float32, but the model needs int64"):
        check_state(STATE, STATE | {"layer.bias": torch.zeros(2)}, "file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_fine(dtype: torch.dtype) -> None:
    # The sum of these values overflows float16, although each is finite.
    large = torch.full((2, 3), 60_000.0).to(dtype)
    check_state(STATE, STATE | {"layer.weight": large}, "file")


def test_memory_limit_stops_before_the_allocation() -> None:
    with MemoryLimit(10_000, 100, "too large"):
        torch.nn.Linear(30, 40)  # 4,960 bytes
        torch.zeros(10**15, device="meta")  # takes nothing
        with pytest.raises(ConfigError, match="too large"):
            torch.nn.Linear(10**9, 10**9)
    with pytest.raises(ConfigError, match="too many"), MemoryLimit(1e9, 5, "too many"):
        for _ in range(10**9):
            torch.nn.Linear(1, 1)
