"""The engine: traversals step by step, regions that a caller asks for, streams of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers import dividing_threshold, make_unsure, three_levels, until_certain
from torch import Tensor

from tnet.errors import ConfigError, GeometryError, ImageError
from tnet.models import LocatorConfig, TNet
from tnet.models.engine import Traversal, traverse_all
from tnet.models.tnet import TNetOutput
from tnet.scenes import FileScene
from tnet.scenes.memory import MemoryScene
from tnet.traversal import BestFirst, Choice, ExpectedGain, LevelByLevel, Search, Step, TopK, Trail
from tnet.traversal.stopping import confidence


@pytest.fixture(scope="module")
def model() -> TNet:
    torch.manual_seed(1)
    return make_unsure(TNet(three_levels(batch_norm="per_level")).eval(), torch.rand(1, 1, 96, 96))


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    torch.manual_seed(2)
    return [torch.rand(1, 1, 96 + 8 * i, 128 - 4 * i) * (i + 1) / 9 for i in range(9)]


# --- step by step


def test_a_traversal_can_be_watched(model: TNet, images: list[Tensor]) -> None:
    traversal = model.search(images[0], BestFirst(looks=4, levels=3))
    looks = list(traversal)
    assert [len(look.regions) for look in looks] == [1] * 5
    for n, look in enumerate(looks):
        expected = model(images[0], search=BestFirst(looks=n, levels=3))
        torch.testing.assert_close(look.logits, expected.logits)
        assert torch.equal(look.regions.box_l0_yxyx[0], expected.regions.box_l0_yxyx[-1])
    output = traversal.output()
    torch.testing.assert_close(output.logits, looks[-1].logits)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_first_rows_of_a_trail_give_the_answer_of_fewer_looks(model: TNet, images: list[Tensor], n: int) -> None:
    traversal = model.search(images[0], BestFirst(looks=4, levels=3))
    list(traversal)
    trail = traversal.trail.first(1 + n)
    output, expected = model.answer(trail), model(images[0], search=BestFirst(looks=n, levels=3))
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.weights, expected.weights)
    assert torch.equal(output.regions.box_l0_yxyx, expected.regions.box_l0_yxyx)
    assert len(trail) == 1 + n and len(traversal.trail) == 5
    if n:  # without looks nothing is scored
        torch.testing.assert_close(output.location_logits, expected.location_logits)


def test_a_region_of_interest_comes_next(model: TNet, images: list[Tensor]) -> None:
    traversal = model.search(images[0], BestFirst(looks=4, levels=3))
    next(traversal)
    box = (10, 20, 58, 84)  # half the image per side: as large as a cell of level 1
    traversal.look_at(box)
    look = next(traversal)
    assert look.regions.box_l0_yxyx.tolist() == [list(box)]
    assert look.regions.level.tolist() == [1] and look.regions.parent.tolist() == [0]
    rest = list(traversal)
    assert len(rest) == 3  # one of the four looks is spent
    output = traversal.output()
    assert isinstance(output, TNetOutput) and output.region_probs is not None
    assert torch.isnan(output.region_probs[0, 0]) and not torch.isnan(output.region_probs[0, 1:]).any()


def test_a_region_after_the_end_and_in_a_published_traversal(model: TNet, images: list[Tensor]) -> None:
    traversal = model.search(images[0], LevelByLevel((2, 1), TopK()))
    boxes = [look.regions.box_l0_yxyx for look in traversal]
    traversal.look_at((0, 0, 24, 32))  # a quarter per side: level 2
    look = next(traversal)
    assert look.regions.level.tolist() == [2]
    assert [len(box) for box in boxes] == [1, 2, 2]
    assert next(traversal, None) is None
    assert len(traversal.output().regions) == 6


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (200, 0, 300, 50), (0, -9, 5, 0)])
def test_a_region_that_shows_nothing(model: TNet, images: list[Tensor], box: tuple[int, int, int, int]) -> None:
    traversal = model.search(images[0], BestFirst(looks=4, levels=3))
    next(traversal)
    with pytest.raises(GeometryError, match="shows nothing"):
        traversal.look_at(box)
    with pytest.raises(GeometryError, match="image 1"):
        traversal.look_at((0, 0, 9, 9), image=1)


def test_the_whole_image_comes_first(model: TNet, images: list[Tensor]) -> None:
    with pytest.raises(GeometryError, match="image 0"):
        model.search(images[0], BestFirst(looks=4, levels=3)).look_at((0, 0, 9, 9))


# --- streams


def test_a_stream_by_gain_gives_what_single_images_do(images: list[Tensor]) -> None:
    torch.manual_seed(5)
    model = TNet(three_levels(locator=LocatorConfig(value=True))).eval()
    output = model(images[0], search=BestFirst(9, 3, score="gain"))
    assert output.gains is not None
    search = BestFirst(9, 3, score="gain", stop=(ExpectedGain(output.gains.flatten().sort().values[-8].item()),))
    expected = [model(image, search=search) for image in images]
    assert len({len(output.regions) for output in expected}) > 1
    for one, alone in zip(traverse_all(model, images, search, glimpses=8), expected, strict=True):
        assert isinstance(one, TNetOutput)
        torch.testing.assert_close(one.logits, alone.logits)
        assert torch.equal(one.regions.box_l0_yxyx, alone.regions.box_l0_yxyx)


@pytest.mark.parametrize(("glimpses", "active"), [(1, 1), (4, 8), (8, 3), (64, 256)])
def test_a_stream_gives_what_single_images_do(
    model: TNet, images: list[Tensor], glimpses: int, active: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        sure = [[confidence(look.logits) for look in model.search(image, BestFirst(6, 3))] for image in images]
    threshold = dividing_threshold(torch.tensor(sure))
    search = BestFirst(looks=6, levels=3, stop=(until_certain(threshold),))
    expected = [model(image, search=search) for image in images]
    looks = {len(output.regions) for output in expected}
    assert len(looks) > 1  # easy and hard images
    batches: list[int] = []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda pixels, regions: (batches.append(len(pixels)), encode(pixels, regions))[1]
    )
    with torch.inference_mode():
        actual = list(traverse_all(model, images, search, glimpses=glimpses, active=active))
    for one, alone in zip(actual, expected, strict=True):
        assert isinstance(one, TNetOutput)
        torch.testing.assert_close(one.logits, alone.logits, atol=1e-5, rtol=0)
        assert torch.equal(one.regions.box_l0_yxyx, alone.regions.box_l0_yxyx)
    assert sum(batches) == sum(len(output.regions) for output in expected)
    if glimpses == 4:
        assert min(batches[: len(batches) // 2]) >= 4  # full until the stream ends


def test_a_stream_is_read_as_it_is_needed(model: TNet, images: list[Tensor]) -> None:
    taken: list[int] = []

    def stream() -> object:
        for i, image in enumerate(images):
            taken.append(i)
            yield image

    results = traverse_all(model, stream(), BestFirst(looks=2, levels=2), glimpses=2, active=3)  # type: ignore[arg-type]
    next(results)
    assert len(taken) <= 4
    assert len(list(results)) == 8


def test_an_image_that_fails_in_mid_search_harms_no_other(
    model: TNet, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(MemoryScene):
        def glimpse(self, box: tuple[int, int, int, int], *args: object, **options: object) -> Tensor:
            if box[0] > 0 or box[2] < self.size_hw[0]:
                raise ImageError("bad.tif cannot be read: damaged; copy it again")
            return super().glimpse(box, *args, **options)  # type: ignore[arg-type]

    pixels = [(image[0] * 255).byte() for image in images]
    scenes = [MemoryScene(image, f"{i}.png") for i, image in enumerate(pixels)]
    scenes[3] = Broken(pixels[3], "bad.tif")
    search = BestFirst(looks=4, levels=3)
    results = list(traverse_all(model, [[scene] for scene in scenes], search, glimpses=4))
    assert isinstance(results[3], ImageError)
    for i, result in enumerate(results):
        if i != 3:
            assert isinstance(result, TNetOutput)
            torch.testing.assert_close(result.logits, model([scenes[i]], search=search).logits, atol=1e-5, rtol=0)


def test_a_file_that_cannot_be_opened_harms_no_other(model: TNet, images: list[Tensor], tmp_path: Path) -> None:
    scenes = [MemoryScene((image[0] * 255).byte(), f"{i}.png") for i, image in enumerate(images[:2])]
    (tmp_path / "bad.png").write_bytes(b"no image")
    stream = [[scenes[0]], [FileScene(tmp_path / "bad.png")], [scenes[1]]]
    first, bad, last = traverse_all(model, stream, BestFirst(looks=2, levels=2))  # type: ignore[arg-type]
    assert isinstance(bad, ImageError) and "bad.png" in str(bad)
    assert isinstance(first, TNetOutput) and isinstance(last, TNetOutput)


def test_a_search_of_ten_lines_runs_on_a_stream(model: TNet, images: list[Tensor]) -> None:
    class Deeper(Search):
        """Three looks per image, each at the best cell of the one before."""

        def __call__(self, trail: Trail) -> Step | None:
            if int(trail.looks.max()) == 3:
                return None
            last = trail.rows_at(trail.regions.depth)
            return trail.step(last, Choice.of_cells(trail.scores(last).argmax(1, keepdim=True)))

    with torch.no_grad():
        for output, image in zip(traverse_all(model, images, Deeper(), glimpses=4), images, strict=True):
            assert isinstance(output, TNetOutput) and output.regions.level.tolist() == [0, 1, 2, 3]
            torch.testing.assert_close(output.logits, model(image, search=Deeper()).logits, atol=1e-5, rtol=0)


def test_an_empty_stream(model: TNet) -> None:
    assert list(traverse_all(model, [], BestFirst(looks=1, levels=2))) == []


@pytest.mark.parametrize("changes", [{"glimpses": 0}, {"active": 0}])
def test_impossible_sizes(model: TNet, changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        list(traverse_all(model, [], BestFirst(looks=1, levels=2), **changes))


def test_a_traversal_is_an_iterator(model: TNet, images: list[Tensor], tmp_path: Path) -> None:
    traversal = model.search(images[0], BestFirst(looks=0, levels=2))
    assert isinstance(traversal, Traversal) and iter(traversal) is traversal
    assert len(list(traversal)) == 1
