"""The canvas: features are written at their places and nowhere else; it starts as the mean and learns by place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import awaken, three_levels, tiny_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from tnet.errors import ConfigError
from tnet.evaluation.evaluator import without_context
from tnet.geometry import image_shares
from tnet.models import TNet
from tnet.models.aggregation import Places
from tnet.models.canvas import CHANNELS, SIDE, CanvasAggregation, cover
from tnet.models.tnet import TNetOutput
from tnet.objectives import Objective
from tnet.traversal import BestFirst


def build(**changes: object) -> TNet:
    torch.manual_seed(1)
    return awaken(TNet(three_levels(aggregation="canvas", **changes)).eval())


def random_places(batch: int, n: int) -> Places:
    corners = torch.rand(batch, n, 2, 2).sort(dim=2).values
    return Places(corners.flatten(2), torch.randn(batch, CHANNELS, SIDE, SIDE))


# --- writing


@given(st.integers(1, 100_000), st.data())
def test_a_span_covers_the_parts_that_it_touches(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first + 1, size))
    shares = cover(torch.tensor([first / size, last / size]))
    # One part's worth at least, and as many parts' as it is long; none where it is not.
    assert float(shares.sum()) == pytest.approx(max((last - first) / size * SIDE, 1), rel=1e-2)
    assert float(shares.min()) >= 0 and float(shares.max()) <= 1 + 1e-2
    for part, share in enumerate(shares.tolist()):
        touches = first * SIDE < (part + 1) * size and last * SIDE > part * size
        assert touches or share == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize(
    ("box", "rows", "cols", "total"),
    [
        ((0, 0, 320, 160), (0, 16), (0, 16), 256.0),  # the whole image
        ((0, 0, 20, 10), (0, 1), (0, 1), 1.0),  # exactly one cell
        ((319, 159, 320, 160), (15, 16), (15, 16), 1.0),  # the last pixel
        ((19, 75, 21, 76), (0, 2), (7, 8), 1.0),  # on an edge between two
        ((160, 80, 400, 400), (8, 16), (8, 16), 64.0),  # past the edge of the image
        ((-50, -50, -20, -20), (0, 1), (0, 1), 1.0),  # in the padding: the nearest pixel
        ((0, 0, 30, 10), (0, 2), (0, 1), 1.5),
    ],
)
def test_a_feature_is_written_at_its_place(
    box: tuple[int, ...], rows: tuple[int, int], cols: tuple[int, int], total: float
) -> None:
    canvas = CanvasAggregation(4, 6)
    boxes = image_shares(torch.tensor([[box]]), torch.tensor([[320, 160]]))
    features = torch.randn(1, 1, 4)
    with torch.no_grad():
        written = canvas.written(features, None, Places(boxes, None))[0]
        value = canvas.write(features)[0, 0]
    torch.testing.assert_close(written.sum(dim=(1, 2)), value * total, rtol=1e-4, atol=1e-4)
    touched = (written.abs().sum(dim=0) > 1e-4).nonzero()
    assert touched.min(dim=0).values.tolist() == [rows[0], cols[0]]
    assert touched.max(dim=0).values.tolist() == [rows[1] - 1, cols[1] - 1]


def test_features_add_up_on_the_start() -> None:
    canvas, places, features = CanvasAggregation(4, 6), random_places(2, 3), torch.randn(2, 3, 4)
    assert places.start is not None
    alone = [
        canvas.written(features[:, i : i + 1], None, Places(places.boxes[:, i : i + 1], None)) for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(canvas.written(features, None, places), places.start + sum(alone))


# --- reading


def test_starts_as_the_mean_and_reports_its_weights() -> None:
    features, seen = torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    feature, weights = CanvasAggregation(4, 6)(features, seen, random_places(2, 3))
    torch.testing.assert_close(feature[0], features[0].mean(0))
    torch.testing.assert_close(feature[1], features[1, :2].mean(0))
    torch.testing.assert_close(weights, torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0]]))


def test_neither_order_nor_padding_nor_the_batch_matters() -> None:
    canvas = awaken(CanvasAggregation(4, 6))
    features, places, seen = torch.randn(3, 5, 4), random_places(3, 5), torch.rand(3, 5) > 0.4
    seen[:, 0] = True
    feature, weights = canvas(features, seen, places)
    noise = torch.where(seen[..., None], features, torch.randn(3, 5, 4))
    torch.testing.assert_close(canvas(noise, seen, places).feature, feature)
    assert places.start is not None
    for i in range(3):
        mine = seen[i].nonzero().flatten().flip(0)
        alone = Places(places.boxes[i : i + 1, mine], places.start[i : i + 1])
        torch.testing.assert_close(canvas(features[i : i + 1, mine], None, alone).feature[0], feature[i])
    assert not weights[~seen].any()


def test_places_are_required() -> None:
    with pytest.raises(ConfigError, match="without their places"):
        CanvasAggregation(4, 6)(torch.randn(1, 2, 4))


def test_groups_of_places() -> None:
    places = random_places(2, 3)
    groups = places.at(torch.tensor([[0, 1], [0, 2]]))
    assert groups.start is not None and places.start is not None
    for image in range(2):
        for i, second in enumerate((1, 2)):
            assert torch.equal(groups.boxes[2 * image + i], places.boxes[image, [0, second]])
            assert torch.equal(groups.start[2 * image + i], places.start[image])


@pytest.mark.slow
def test_learns_what_only_places_say() -> None:
    """Whether two alike features lie side by side or apart, which no sum of them tells."""
    torch.manual_seed(0)
    canvas, classifier = CanvasAggregation(4, 6), torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW([*canvas.parameters(), *classifier.parameters()], lr=0.01)
    start = torch.randint(0, 12, (32, 1, 2)) / SIDE
    beside = torch.arange(32) % 2
    second = torch.where(beside[:, None, None] == 1, start + torch.tensor([0.0, 1 / SIDE]), (start + 0.4) % 0.9)
    corner = torch.cat([start, second], dim=1)
    places, features = Places(torch.cat([corner, corner + 1 / SIDE], dim=2), None), torch.ones(32, 2, 4)
    for _ in range(60):
        loss = cross_entropy(classifier(canvas(features, None, places).feature), beside)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2


# --- in a model


def test_every_part_gets_a_gradient() -> None:
    model = build().train()
    output = model(torch.rand(3, 1, 96, 96))
    cross_entropy(output.logits, torch.tensor([0, 1, 2])).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("aggregation.", "classifier.", "position.", "backbone.model.conv1")):
            assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


@pytest.mark.parametrize("looks", [0, 1, (2, 1)])
def test_any_number_of_looks(looks: int | tuple[int, ...]) -> None:
    model, images = build(), torch.rand(2, 1, 128, 96)
    output = model(images, looks=looks)
    assert bool(torch.isfinite(output.logits).all())
    torch.testing.assert_close(output.weights.sum(1), torch.ones(2))
    torch.testing.assert_close(model.classify(output.features, output.seen, output.places), output.logits)
    torch.testing.assert_close(model(images[1:], looks=looks).logits[0], output.logits[1], rtol=1e-4, atol=1e-5)


def test_one_level() -> None:
    torch.manual_seed(1)
    model = awaken(TNet(tiny_config(aggregation="canvas", levels=1, looks=())).eval())
    assert model(torch.rand(2, 1, 96, 96)).logits.shape == (2, 5)


def test_the_place_of_a_look_matters() -> None:
    """The same features elsewhere are another answer."""
    model, image = build(), torch.rand(1, 1, 96, 96)
    output = model(image, search=BestFirst(3, 3))
    assert output.places is not None
    moved = output.places._replace(boxes=output.places.boxes.flip(1))
    assert not torch.allclose(model.classify(output.features, None, moved), output.logits, atol=1e-4)


def test_without_context_the_whole_image_is_not_on_the_canvas() -> None:
    model, images = build(), torch.rand(2, 1, 96, 96)
    output = model(images, looks=(2, 1))
    assert isinstance(output, TNetOutput) and output.places is not None
    expected = model.classify(output.features[:, 1:], None, Places(output.places.boxes[:, 1:], None))
    actual = without_context(model, output)
    assert actual is not None and torch.equal(actual, expected)


def test_worth_is_that_of_the_whole_image_and_one_region() -> None:
    model, images, target = build(), torch.rand(2, 1, 96, 96), torch.tensor([1, 3])
    output = model(images, looks=(2, 1))
    worth = Objective.worth(output, target, model)
    assert output.places is not None and output.places.start is not None
    for look in range(1, output.features.shape[1]):
        pair = [0, look]
        logits: Tensor = model.classify(
            output.features[:, pair], None, Places(output.places.boxes[:, pair], output.places.start)
        )
        expected = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)
        torch.testing.assert_close(worth[:, look - 1], expected, rtol=1e-4, atol=1e-5)


def test_a_canvas_starts_as_the_cell_maps_of_the_views_at_their_places() -> None:
    torch.manual_seed(0)
    canvas = CanvasAggregation(8, cell_dim=3)
    maps, whole = torch.rand(3, 3, 4, 4), torch.tensor([0.0, 0.0, 1.0, 1.0])
    left, right = torch.tensor([0.0, 0.0, 1.0, 0.5]), torch.tensor([0.0, 0.5, 1.0, 1.0])
    start = canvas.begin(maps, torch.stack([left, right, whole]), torch.tensor([0, 0, 1]))
    filled = canvas.start(maps).repeat_interleave(4, dim=2)
    halves = [filled[view].repeat_interleave(2, dim=2) for view in (0, 1)]
    assert torch.allclose(start[0], torch.cat(halves, dim=2), atol=1e-6)
    assert torch.allclose(start[1], filled[2].repeat_interleave(4, dim=2), atol=1e-6)


def test_a_long_image_is_seen_as_squares_on_a_canvas() -> None:
    torch.manual_seed(0)
    model = TNet(three_levels(aggregation="canvas")).eval()
    images = [torch.rand(1, 64, 256), torch.rand(1, 96, 96)]
    together = model(images, search=BestFirst(3, 3, aspect="keep"))
    assert together.places is not None and together.places.start is not None
    for index, image in enumerate(images):
        alone = model([image], search=BestFirst(3, 3, aspect="keep"))
        assert torch.allclose(alone.logits[0], together.logits[index], atol=1e-5)
