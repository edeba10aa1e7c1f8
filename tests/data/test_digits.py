"""The synthetic task: what the images hold, that they repeat, and what is rejected."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tnet.data.digits import DigitsConfig, MegapixelDigits, Split, Task
from tnet.data.glyphs import CLUTTER_BANK, SPLITS, clutter_bank, load_glyphs
from tnet.data.sample import Batch, collate
from tnet.errors import ConfigError, DataError

PINNED_DIGITS = [(0, 119, 100), (0, 58, 108), (0, 10, 112), (6, 10, 16), (9, 80, 11)]
PINNED_CLUTTER_BOX = [85, 57, 113, 85]
SMALL = {"canvas_px": 160, "images_train": 40, "images_val": 20, "images_test": 20}


def make(split: Split = "train", **changes: object) -> MegapixelDigits:
    return MegapixelDigits(DigitsConfig(**(SMALL | changes)), split)  # type: ignore[arg-type]


def idx_bytes(array: np.ndarray, magic: int | None = None) -> bytes:
    header = [2048 + array.ndim if magic is None else magic, *array.shape]
    return np.array(header, dtype=">u4").tobytes() + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, train: int = 60, test: int = 20, zipped: bool = False) -> Path:
    """A tiny MNIST: glyph ``i`` has its number on every pixel and shows digit ``i % 10``."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, first, count in (("train", 1, train), ("t10k", 101, test)):
        numbers = np.arange(first, first + count)
        images = np.broadcast_to(numbers[:, None, None], (count, 28, 28))
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            data = idx_bytes(array)
            path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


@pytest.fixture
def as_in_use() -> Iterator[None]:
    """Without the tests' own type checks, which would catch a wrong word before tnet says what is wrong with it."""
    disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", disabled)


def test_an_image_is_uint8_with_a_name_and_a_label() -> None:
    sample = make("val")[3]
    assert sample.image.shape == (1, 160, 160)
    assert sample.image.dtype == torch.uint8
    assert sample.image.max() > 200
    assert sample.target.shape == ()
    assert sample.target.dtype == torch.int64
    assert sample.name == "made/val/000003"


def test_defaults_are_the_published_task() -> None:
    config = DigitsConfig()
    assert (config.canvas_px, config.digits, config.noise_patterns) == (1500, 5, 50)
    assert [config.images(split) for split in SPLITS] == [5000, 1000, 1000]


def test_same_index_same_bytes_in_any_order_and_object() -> None:
    first, second = make(), make()
    forward = [first[index] for index in range(6)]
    backward = {index: second[index] for index in reversed(range(6))}
    for index, sample in enumerate(forward):
        assert torch.equal(sample.image, backward[index].image)
        assert torch.equal(sample.target, backward[index].target)
    assert not torch.equal(forward[0].image, forward[1].image)


def test_stream_is_pinned() -> None:
    """Layouts that change between releases would change every published number on this task."""
    layout = make().layout(0)
    assert layout.digits == PINNED_DIGITS
    assert layout.clutter_box_l0_yxyx[0].tolist() == PINNED_CLUTTER_BOX


@pytest.mark.parametrize("changes", [{"seed": 1}, {"variant": "ats"}, {"noise_patterns": 10}, {"canvas_px": 170}])
def test_every_option_changes_the_image(changes: dict[str, object]) -> None:
    assert not torch.equal(make()[0].image, make(**changes)[0].image)


def test_splits_have_different_layouts() -> None:
    layouts = [make(split).layout(0).clutter_box_l0_yxyx.tolist() for split in SPLITS]
    assert not any(layouts[a] == layouts[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_task_changes_the_question_not_the_image() -> None:
    images = [make(task=task)[5].image for task in get_args(Task)]
    assert all(torch.equal(images[0], image) for image in images[1:])


def test_workers_change_nothing() -> None:
    dataset = make(images_train=6)

    def batches(workers: int) -> list[Batch]:
        return list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate))

    for alone, shared in zip(batches(0), batches(2), strict=True):
        assert torch.equal(torch.as_tensor(alone.images), torch.as_tensor(shared.images))
        assert torch.equal(alone.targets, shared.targets)
        assert alone.names == shared.names


def test_pickles_small_and_stays_the_same() -> None:
    dataset = make()
    dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data)[1].image, dataset[1].image)


def test_every_answer_agrees_with_the_layout() -> None:
    datasets = {task: make(task=task) for task in get_args(Task)}
    for index in range(40):
        digits = datasets["majority"].layout(index).digits
        labels = [label for label, _, _ in digits]
        counts = {label: labels.count(label) for label in labels}
        winners = [label for label, copies in counts.items() if copies == 3]
        assert winners == [labels[0]]
        assert sum(counts.values()) == 5
        assert int(datasets["majority"][index].target) == winners[0]
        assert int(datasets["max"][index].target) == max(labels)
        assert int(datasets["top"][index].target) == min(digits, key=lambda digit: digit[1:])[0]
        present = datasets["multi"][index].target
        assert present.dtype == torch.float32
        assert set(present.nonzero().flatten().tolist()) == set(labels)
        assert set(present.tolist()) == {0.0, 1.0}
    assert [datasets[task].multilabel for task in ("majority", "max", "top", "multi")] == [False, False, False, True]
    assert datasets["multi"].classes == [str(digit) for digit in range(10)]


def test_top_of_equal_rows_is_the_leftmost() -> None:
    dataset = make(task="top", canvas_px=120, digit_px=60, target_copies=1, other_digits=3, noise_patterns=0)
    layout = dataset.layout(0)  # four digits fill the canvas, so two share the top row
    leftmost = next(label for label, y0, x0 in layout.digits if (y0, x0) == (0, 0))
    assert sorted(y0 for _, y0, _ in layout.digits) == [0, 0, 60, 60]
    assert int(dataset[0].target) == leftmost


@given(
    digit_px=st.integers(4, 40),
    cells=st.integers(1, 5),
    slack_px=st.integers(0, 60),
    fill=st.floats(0, 1),
    noise_px=st.integers(2, 20),
    seed=st.integers(0, 2**40),
)
def test_layouts_stay_inside_and_apart(
    digit_px: int, cells: int, slack_px: int, fill: float, noise_px: int, seed: int
) -> None:
    canvas_px = max(digit_px * cells + slack_px, noise_px)
    others = int(fill * ((canvas_px // digit_px) ** 2 - 1))
    dataset = make(
        task="max", canvas_px=canvas_px, digit_px=digit_px, noise_px=noise_px, noise_patterns=7, seed=seed,
        target_copies=1, other_digits=others,
    )  # fmt: skip
    layout = dataset.layout(seed % len(dataset))
    corners = layout.digit_box_l0_yxyx[:, :2]
    for boxes, side in ((layout.digit_box_l0_yxyx, digit_px), (layout.clutter_box_l0_yxyx, noise_px)):
        assert boxes.min() >= 0
        assert boxes.max() <= canvas_px
        assert (boxes[:, 2:] - boxes[:, :2] == side).all()
    assert len(corners) == 1 + others
    apart = np.abs(corners[:, None] - corners[None]).max(axis=-1) + canvas_px * np.eye(len(corners), dtype=int)
    assert apart.min() >= digit_px
    assert len(layout.clutter_box_l0_yxyx) == 7


def test_positions_reach_every_edge() -> None:
    boxes = np.concatenate([make(canvas_px=60, other_digits=0).layout(index).digit_box_l0_yxyx for index in range(40)])
    assert boxes[:, :2].min(axis=0).tolist() == [0, 0]
    assert boxes[:, 2:].max(axis=0).tolist() == [60, 60]


def test_a_full_canvas_still_varies() -> None:
    """Four digits of 60 px on 122 px: chance alone hardly ever finds room, so they go to cells of 61 px."""
    dataset = make(canvas_px=122, digit_px=60, target_copies=3, other_digits=1)
    corners = np.concatenate([dataset.layout(index).digit_box_l0_yxyx[:, :2] for index in range(40)])
    assert {0, 1, 61, 62} <= set(corners[:, 0].tolist())
    assert {0, 1, 61, 62} <= set(corners[:, 1].tolist())


def test_no_other_class_reaches_the_majority() -> None:
    dataset = make(target_copies=2, other_digits=9, canvas_px=200)  # the most there can be: one of each other class
    for index in range(10):
        labels = dataset.layout(index).labels
        assert np.bincount(labels, minlength=10).tolist() == [2 if digit == labels[0] else 1 for digit in range(10)]


def test_classes_are_about_uniform() -> None:
    dataset = make(images_train=1000)
    layouts = [dataset.layout(index) for index in range(1000)]
    for task in ("majority", "top"):
        answers = [int(layout.answer(task)) for layout in layouts]
        assert np.bincount(answers, minlength=10) == pytest.approx(np.full(10, 100), abs=43)  # 4.5 deviations


def test_ips_never_hides_a_digit_and_ats_does() -> None:
    bank = load_glyphs(None, "train")

    def hidden(variant: str) -> int:
        dataset = make(variant=variant, noise_patterns=200)
        image, layout = dataset[0].image[0].numpy(), dataset.layout(0)
        shown = zip(layout.glyphs, layout.digit_box_l0_yxyx, strict=True)
        return sum(not np.array_equal(image[y0:y1, x0:x1], bank.pixels[glyph]) for glyph, (y0, x0, y1, x1) in shown)

    assert hidden("ips") == 0
    assert hidden("ats") > 0


def test_the_last_piece_of_clutter_is_whole_in_ats() -> None:
    dataset = make(variant="ats", noise_px=20)
    layout = dataset.layout(1)
    y0, x0, y1, x1 = layout.clutter_box_l0_yxyx[-1]
    pattern = clutter_bank(0, 20)[layout.clutter_patterns[-1]]
    assert np.array_equal(dataset[1].image[0, y0:y1, x0:x1].numpy(), pattern)


def test_without_clutter_only_digits_are_white() -> None:
    dataset = make(noise_patterns=0)
    image = dataset[0].image[0].numpy().copy()
    for y0, x0, y1, x1 in dataset.layout(0).digit_box_l0_yxyx:
        assert image[y0:y1, x0:x1].max() > 100
        image[y0:y1, x0:x1] = 0
    assert image.max() == 0


@pytest.mark.parametrize("digit_px", [14, 28, 50])
def test_digits_keep_their_shape_at_any_size(digit_px: int) -> None:
    glyph = load_glyphs(None, "train").resized(0, digit_px)
    assert glyph.shape == (digit_px, digit_px)
    assert glyph.mean() == pytest.approx(load_glyphs(None, "train").pixels[0].mean(), rel=0.05)


def test_bundled_splits_share_no_digit_and_are_stratified() -> None:
    banks = [load_glyphs(None, split) for split in SPLITS]
    assert sum(len(bank.labels) for bank in banks) == 1797
    for bank, share in zip(banks, (0.6, 0.2, 0.2), strict=True):
        sizes = [len(members) for members in bank.of_class]
        assert sizes == pytest.approx([179.7 * share] * 10, abs=6)
        assert all((bank.labels[members] == digit).all() for digit, members in enumerate(bank.of_class))
    seen = [{glyph.tobytes() for glyph in bank.pixels} for bank in banks]
    assert not any(seen[a] & seen[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_bundled_digits_are_upright() -> None:
    """The mean seven has its bar at the top, and the mean six its bowl at the bottom."""
    bank = load_glyphs(None, "train")
    seven, six = (bank.pixels[bank.of_class[digit]].mean(axis=0) for digit in (7, 6))
    assert seven[3:12].sum() > 1.1 * seven[16:25].sum()
    assert six[16:25].sum() > 1.1 * six[3:12].sum()
    assert bank.pixels.max() == 255


@pytest.mark.parametrize("side_px", [2, 9, 28, 64])
def test_clutter_is_bright_line_segments(side_px: int) -> None:
    patterns = clutter_bank(3, side_px)
    assert patterns.shape == (CLUTTER_BANK, side_px, side_px)
    lit = patterns > 0
    assert (lit.sum(axis=(1, 2)) <= 4 * side_px).all()  # two lines of 2 * side points
    assert (lit.any(axis=2).sum(axis=1) >= 1).all()
    assert (np.maximum(lit.any(axis=1).sum(axis=1), lit.any(axis=2).sum(axis=1)) == side_px).all()  # corner to edge
    for pattern in patterns:
        (grey,) = set(pattern[pattern > 0].tolist())
        assert 204 <= grey <= 255


def test_clutter_lines_start_in_every_corner() -> None:
    lit = clutter_bank(0, 28) > 0
    assert lit[:, 0, 0].all()  # one line of each pattern is never flipped
    for row, column in ((0, -1), (-1, 0), (-1, -1)):
        assert 2 <= lit[:, row, column].sum() <= 25


def test_caches_cannot_be_written() -> None:
    for array in (clutter_bank(0, 28), load_glyphs(None, "train").pixels, load_glyphs(None, "train").labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(("layout", "zipped"), [("", False), ("", True), ("raw", True), ("MNIST/raw", False)])
def test_mnist_files_are_read_and_split(tmp_path: Path, layout: str, zipped: bool) -> None:
    write_mnist(tmp_path / layout, zipped=zipped)
    numbers = [load_glyphs(str(tmp_path), split).pixels[:, 5, 7].tolist() for split in SPLITS]
    assert numbers == [list(range(1, 51)), list(range(51, 61)), list(range(101, 121))]
    dataset = make("val", mnist_dir=str(tmp_path), noise_patterns=0)
    layout_0, image = dataset.layout(0), dataset[0].image[0]
    for (label, y0, x0), glyph in zip(layout_0.digits, layout_0.glyphs, strict=True):
        number = int(image[y0, x0])
        assert number == 51 + glyph
        assert (number - 1) % 10 == label


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GREY = np.zeros((60, 28, 28))
BAD_FILES = {
    "empty": (IMAGES, b"", "after 0 bytes"),
    "short header": (LABELS, idx_bytes(np.zeros(60))[:5], "after 5 bytes"),
    "magic": (IMAGES, idx_bytes(GREY, magic=2049), "0x00000801 .*0x00000803"),
    "truncated": (IMAGES, idx_bytes(GREY)[:-1], "47040 bytes, but 47039 follow"),
    "too long": (LABELS, idx_bytes(np.zeros(60)) + b"0", "60 bytes, but more follow"),
    "too many": (IMAGES, np.array([2051, 2**32 - 1, 28, 28], ">u4").tobytes(), "4294967295 items.* 1000000"),
    "pixels": (IMAGES, idx_bytes(np.zeros((60, 14, 56))), r"\(14, 56\) .*\(28, 28\)"),
    "fewer labels": (LABELS, idx_bytes(np.zeros(59)), "59 labels.*train-images-idx3-ubyte has 60"),
    "label": (LABELS, idx_bytes(np.full(60, 10)), "label 10"),
    "class": (LABELS, idx_bytes(np.arange(60) % 9), "none of class 9"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_damaged_file_is_named(tmp_path: Path, case: str) -> None:
    name, data, found = BAD_FILES[case]
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=found) as error:
        make(mnist_dir=str(tmp_path))
    assert str(tmp_path) in str(error.value)
    assert "leave mnist_dir empty" in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "not gzip", "flipped"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, damage: str) -> None:
    path = write_mnist(tmp_path, zipped=True) / f"{IMAGES}.gz"
    data = path.read_bytes()
    flipped = data[:40] + bytes(255 - byte for byte in data[40:60]) + data[60:]
    path.write_bytes({"cut": data[:-12], "not gzip": b"a page in HTML, say", "flipped": flipped}[damage])
    with pytest.raises(DataError, match=f"{IMAGES}.gz"):
        make(mnist_dir=str(tmp_path))


def test_a_gzip_file_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    path = write_mnist(tmp_path, zipped=True) / f"{LABELS}.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(60)) + bytes(50_000_000)))
    with pytest.raises(DataError, match="60 bytes, but more follow"):
        make(mnist_dir=str(tmp_path))


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        make(mnist_dir=str(tmp_path / "nowhere"))
    (write_mnist(tmp_path) / LABELS).unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
        make(mnist_dir=str(tmp_path))
    make("test", mnist_dir=str(tmp_path))[0]  # needs the t10k files alone


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "sum"}, "task is 'sum'.*majority, max, top, multi"),
        ({"variant": "IPS"}, "variant is 'IPS'.*ips, ats"),
        ({"canvas_px": 20}, "digit_px is 28.*canvas_px, 20"),
        ({"canvas_px": 40_000}, "canvas_px is 40000.*32768"),
        ({"digit_px": 3}, "digit_px is 3; .*4"),
        ({"noise_px": 200}, "noise_px is 200.*canvas_px, 160"),
        ({"noise_px": 1}, "noise_px is 1; .*2"),
        ({"target_copies": 0}, "target_copies is 0"),
        ({"other_digits": -1}, "other_digits is -1"),
        ({"noise_patterns": -1}, "noise_patterns is -1"),
        ({"images_val": -1}, "images_val is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"canvas_px": 83}, "is 5.* 4 digits of 28 px fit on 83 px"),
        ({"target_copies": 1, "other_digits": 1}, "other_digits is 1.*target_copies"),
        ({"target_copies": 2, "other_digits": 10}, "other_digits is 10.*at most 9"),
    ],
)
def test_wrong_settings_are_rejected(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DigitsConfig(**(SMALL | changes))  # type: ignore[arg-type]


def test_other_tasks_need_no_majority() -> None:
    layout = make(task="max", target_copies=1, other_digits=4).layout(0)
    assert (layout.labels[1:] != layout.labels[0]).all()


def test_an_unknown_split_is_rejected() -> None:
    with pytest.raises(ConfigError, match="split is 'dev'.*train, val, test"):
        make("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [-1, 20])
def test_an_index_outside_the_split_is_rejected(index: int) -> None:
    with pytest.raises(IndexError, match=f"index is {index}; .* 0 to 19"):
        make("val")[index]


def test_iteration_ends_and_an_empty_split_is_empty() -> None:
    assert len(list(make("test", images_test=3))) == 3  # type: ignore[call-overload]
    assert len(make("val", images_val=0)) == 0
