"""Preparation of images by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tnet.data.config import DataConfig
from tnet.data.loading import open_data
from tnet.data.transforms import ReferenceEval, named_transform
from tnet.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden" / "preprocess.npz"


@pytest.mark.parametrize("size", [24, 64])
def test_the_reference_implementations_pixels(size: int) -> None:
    """TensorFlow's own result for an image of 40 x 52, smaller and larger."""
    with np.load(GOLDEN) as golden:
        image = torch.from_numpy(golden["input_u8"]).permute(2, 0, 1)
        expected = golden[f"bilinear_{size}"].transpose(2, 0, 1)
    transform = named_transform(f"reference_{size}")
    assert repr(transform) == f"reference_{size}"
    np.testing.assert_allclose(transform.exact(image).numpy(), expected, rtol=0, atol=1e-6)
    rounded = transform(image)
    assert rounded.dtype == torch.uint8 and rounded.shape == (3, size, size)
    assert float((rounded / 255 - transform.exact(image)).abs().max()) <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("name", ["reference", "reference_", "reference_4x4", "reference_448 ", "other_448", ""])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"preprocess {name!r}"):
        named_transform(name)


@pytest.mark.parametrize("size", [0, 16_385])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(ConfigError, match=f"is {size};"):
        ReferenceEval(size)


def test_datasets_apply_it(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (50, 30), (9, 9, 9)).save(folder / "x.png")
    for config in (
        DataConfig(root=str(tmp_path), preprocess="reference_40"),
        DataConfig(root=str(tmp_path), preprocess="reference_40", val=None, val_fraction=0.5),
    ):
        if config.val is None:
            for label in ("a", "b"):
                Image.new("RGB", (50, 30)).save(tmp_path / "train" / label / "y.png")
        for data in open_data(config, 3, 0):
            assert {tuple(data[i].image.shape) for i in range(len(data))} == {(3, 40, 40)}
