from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.helpers import tiny_recipe

from tnet.data.loading import LabelledData, open_data
from tnet.errors import OutputError
from tnet.models.tnet import TNet
from tnet.training.recipe import with_classes
from tnet.training.run import draw_overlays


@pytest.fixture(scope="module")
def trained() -> tuple[TNet, LabelledData]:
    recipe = tiny_recipe()
    data = open_data(recipe.data, 1, recipe.seed)[1]
    torch.manual_seed(0)
    return TNet(with_classes(recipe, data.classes, data.multilabel).model).eval(), data


def test_validation_samples_are_drawn_with_their_labels(trained: tuple[TNet, LabelledData], tmp_path: Path) -> None:
    model, data = trained
    draw_overlays(model, data, tmp_path / "overlays", 2)
    half = len(data) // 2
    names = ["000000.png", f"{half:06d}.png"]
    assert sorted(path.name for path in (tmp_path / "overlays").iterdir()) == [*names, "regions.json"]
    for name in names:
        with Image.open(tmp_path / "overlays" / name) as image:
            image.verify()
    found = json.loads((tmp_path / "overlays" / "regions.json").read_text())
    assert [record["true_label"] for record in found] == [data.classes[int(data[i].target)] for i in (0, half)]


def test_figures_of_before_are_replaced_and_other_files_stay(
    trained: tuple[TNet, LabelledData], tmp_path: Path
) -> None:
    folder = tmp_path / "overlays"
    draw_overlays(*trained, folder, 2)
    draw_overlays(*trained, folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "regions.json"]
    (folder / "mine.png").touch()
    draw_overlays(*trained, folder, 0)
    assert [path.name for path in folder.iterdir()] == ["mine.png"]
    (folder / "mine.png").unlink()
    draw_overlays(*trained, folder, 1)
    draw_overlays(*trained, folder, 0)
    assert not folder.exists()


def test_a_list_of_figures_cannot_name_files_elsewhere(trained: tuple[TNet, LabelledData], tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    (tmp_path / "mine.png").touch()
    names = ["../mine.png", str(tmp_path / "mine.png"), "..", ".", "", 5, ["x"]]
    (tmp_path / "overlays" / "regions.json").write_text(json.dumps([{"figure": name} for name in names]))
    draw_overlays(*trained, tmp_path / "overlays", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


def test_a_folder_that_cannot_be_written_is_an_error(trained: tuple[TNet, LabelledData], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        draw_overlays(*trained, tmp_path / "file" / "overlays", 1)
