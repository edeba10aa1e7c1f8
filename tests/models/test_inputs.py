"""What a model takes as images from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import tiny_config

import tnet
from tnet.data.folder import LabelledImages
from tnet.errors import ConfigError, DataError, GeometryError
from tnet.losses import classification_loss
from tnet.models.tnet import TNet
from tnet.objectives import Objective, ObjectiveConfig

ARRAY = np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8)
TENSOR = torch.tensor(ARRAY).permute(2, 0, 1)


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(0)
    return TNet(tiny_config(in_channels=3)).eval()


def test_common_forms_are_the_same_image(model: TNet, tmp_path: Path) -> None:
    picture, path = Image.fromarray(ARRAY), tmp_path / "a.png"
    picture.save(path)
    chw = np.ascontiguousarray(ARRAY.transpose(2, 0, 1))
    forms: list[tuple[Any, int]] = [
        (TENSOR, 1), (picture, 1), ([picture, picture], 2), (path, 1), (str(path), 1), ([path, TENSOR, picture], 3),
        (ARRAY, 1), ([ARRAY], 1), (np.stack([ARRAY, ARRAY]), 2), (chw, 1), (picture.convert("RGBA"), 1),
    ]  # fmt: skip
    with torch.inference_mode():
        expected = model(TENSOR[None]).logits
        for images, count in forms:
            assert torch.allclose(model(images).logits, expected.expand(count, -1), atol=1e-5)
    probability = tnet.predict(model, TENSOR)[0].probability
    for images, count in forms:
        predictions = tnet.predict(model, images)
        assert len(predictions) == count and {p.probability for p in predictions} == {probability}


def test_pillow_images_are_upright_and_unchanged(model: TNet) -> None:
    turned = Image.fromarray(ARRAY)
    turned.getexif()[0x0112] = 6  # to be turned clockwise
    turned.info["exif"] = turned.getexif().tobytes()
    upright = TENSOR.flip(1).transpose(1, 2)
    with torch.inference_mode():
        assert torch.allclose(model(turned).logits, model(upright[None]).logits, atol=1e-5)
    assert turned.size == (120, 96)


def test_grey_arrays_and_images_of_grey_models() -> None:
    model = TNet(tiny_config()).eval()
    grey = np.array(ARRAY[:, :, 0])
    with torch.inference_mode():
        expected = model(torch.tensor(grey)[None, None]).logits
        for image in (grey, grey[..., None], Image.fromarray(grey)):
            assert torch.allclose(model(image).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    "image", [torch.tensor(ARRAY), torch.tensor(ARRAY)[None], [torch.tensor(ARRAY)], torch.rand(2, 96, 120, 3)]
)
def test_channels_last_is_recognised(model: TNet, image: Any) -> None:
    for call in (model, lambda images: tnet.predict(model, images)):
        with pytest.raises(GeometryError, match=r"\[96, 120, 3\].*movedim"):
            call(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ARRAY / 255, "float64"),
        (3, "int"),
        (None, "NoneType"),
        (ARRAY[None, None], r"\[1, 1, 96, 120, 3\]"),
        ([{}], "dict"),
    ],
)
def test_other_objects_are_refused(model: TNet, image: Any, message: str) -> None:
    for call in (model, lambda images: tnet.predict(model, images)):
        with pytest.raises(GeometryError, match=f"given as .*{message}.*give a path, a Pillow image"):
            call(image)


@pytest.mark.parametrize("label", [5, -1, -100, 255])
def test_label_outside_of_the_classes(label: int) -> None:
    target = torch.tensor([0, label, 4])
    with pytest.raises(DataError, match=f"label {label} is not one of the 5 classes; give class indices from 0 to 4"):
        classification_loss(torch.zeros(3, 5), target)
    with pytest.raises(DataError, match=f"label {label}"):
        LabelledImages([Path("a"), Path("b"), Path("c")], target, list("abcde"))


@pytest.mark.parametrize("name", ["worth_weight", "l2_weight"])
def test_the_model_cannot_be_forgotten(name: str) -> None:
    model = TNet(tiny_config()).train()
    output, target = model(torch.rand(2, 1, 96, 96)), torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=rf"objective.{name} needs the model; call objective\(output, target"):
        Objective(ObjectiveConfig(**{name: 0.1}))(output, target)
    assert Objective(ObjectiveConfig(**{name: 0.1}))(output, target, model).total.isfinite()
