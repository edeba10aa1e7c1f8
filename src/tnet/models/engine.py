"""The engine: runs the steps of traversals, of one batch of images or of many images that come and go.

A model offers the steps and a search decides on them; only this module loops over them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from tnet.errors import ConfigError, ImageError
from tnet.geometry import Grid, Regions, divisible
from tnet.models.base import Images, Model, ModelOutput
from tnet.scenes import Scene, SceneBatch
from tnet.traversal import Search, Step, Trail

SingleImage = Num[Tensor, "_ _ _ _"] | Sequence[Num[Tensor, "_ _ _"]] | Scene | Sequence[Scene] | SceneBatch
"""A model's input that holds one image; images of a stream may differ in size."""


class Seen(NamedTuple):
    """Features of regions."""

    feature: Float[Tensor, "regions dim"]  # with its position encoded, to aggregate and classify
    pooled: Float[Tensor, "regions dim"]  # before the position module, the context of the locator
    cell_map: Float[Tensor, "regions cell_dim h w"]  # intermediate feature map, the locator's input


class Traversable(Model):
    """A model that sees, locates and answers; each step is stateless.

    Attributes:
        grid: division of a region into cells.
        levels: levels that it was trained with, including the whole image.
    """

    grid: Grid
    levels: int

    def search(self, images: Images, search: Search) -> Traversal:
        """Begin a traversal that goes on one step per iteration; see :class:`Traversal`."""
        return Traversal(self, self.scene(images), search)

    @abstractmethod
    def look_pixels(self, scene: SceneBatch, regions: Regions) -> Float[Tensor, "regions channels side side"]:
        """Return the normalised pixels of regions."""

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "regions channels side side"], regions: Regions) -> Seen:
        """Extract the features of regions of any mix of images and levels."""

    @abstractmethod
    def locate(
        self, seen: Seen, regions: Regions, scored: Bool[Tensor, " regions"] | None = None
    ) -> Float[Tensor, "scored ..."] | None:
        """Return the location logits of the cells of ``scored`` regions; ``None`` if there are none.

        If the model :attr:`sees_collected`, these are drafts, which :meth:`relocate` turns into logits.
        """

    @property
    def sees_collected(self) -> bool:
        """Whether location logits depend on everything seen so far."""
        return False

    def relocate(self, trail: Trail, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows cells"]:
        """Return the location logits of rows with drafts, from everything seen so far."""
        raise NotImplementedError

    def begin(
        self, cell_map: Float[Tensor, "views cell_dim h w"], regions: Regions, sizes_hw: Sequence[tuple[int, int]]
    ) -> Float[Tensor, "images channels _ _"] | None:
        """Return the start of the canvas of each image from its first regions, if the model has a canvas."""
        return None

    def gains(
        self, seen: Seen, regions: Regions, scored: Bool[Tensor, " regions"] | None = None
    ) -> Float[Tensor, "scored cells"] | None:
        """Return the predicted gains of the cells of ``scored`` regions, in nats; ``None`` if it predicts none."""
        return None

    @abstractmethod
    def answer(self, trail: Trail) -> ModelOutput:
        """Aggregate and classify the features of a trail."""

    @abstractmethod
    def logits_of(self, trail: Trail) -> Float[Tensor, "images classes"]:
        """Return the class logits of :meth:`answer`, without dropout."""


@dataclass(frozen=True)
class Look:
    """What one step of a traversal saw, and the answer after it.

    Attributes:
        regions: regions of this step; ``parent`` refers to rows of the trail.
        logits: class logits of each image from everything seen so far.
    """

    regions: Regions
    logits: Float[Tensor, "images classes"]


class Traversal(Iterator[Look]):
    """A traversal under way: each iteration takes one step.

    Example:
        >>> traversal = model.search(scene, BestFirst(looks=20, levels=3))
        >>> for look in traversal:
        ...     if float(look.logits.softmax(1).max()) > 0.9:
        ...         break
        >>> traversal.look_at((0, 0, 500, 500))  # a region of interest comes next
        >>> next(traversal).logits
        >>> traversal.output()
    """

    def __init__(self, model: Traversable, scene: SceneBatch, search: Search) -> None:
        self.model, self.scene, self.search = model, scene, search
        self.trail = Trail(scene.sizes_hw, model.grid)
        self.step: Step | None = search.first_step(self.trail)
        self._asked: deque[Step] = deque()
        self._pixels: Tensor | None = None

    def __next__(self) -> Look:
        step = self.pending
        if step is None:
            raise StopIteration
        advance([self])
        return Look(step.regions, self.logits)

    @property
    def logits(self) -> Float[Tensor, "images classes"]:
        """Class logits from everything seen so far."""
        return self.model.logits_of(self.trail)

    def look_at(self, box_l0_yxyx: Sequence[int], image: int = 0) -> None:
        """Make a region the next look, before those that the search chooses.

        Args:
            box_l0_yxyx: ``(y0, x0, y1, x1)`` in level-0 pixels, end exclusive, of any size and shape.
            image: index of the image in the batch, which must have been seen.

        Raises:
            GeometryError: the box is empty or outside the image, or the whole image was not seen yet.
        """
        self._asked.append(self.trail.step_to(box_l0_yxyx, image, self.model.levels - 1))

    def output(self) -> ModelOutput:
        """Return the model's output for everything seen so far."""
        return self.model.answer(self.trail)

    @property
    def pending(self) -> Step | None:
        """The next step, if there is one."""
        return self._asked[0] if self._asked else self.step

    def read(self) -> Float[Tensor, "regions channels side side"]:
        """Read the pixels of the pending step, once."""
        assert self.pending is not None
        if self._pixels is None:
            self._pixels = self.model.look_pixels(self.scene, self.pending.regions)
        return self._pixels

    def append(
        self, features: Tensor, scores: Tensor | None, scored: Bool[Tensor, " regions"], gains: Tensor | None
    ) -> None:
        """Add the pending step to the trail and ask the search for the next."""
        step, self._pixels = self.pending, None
        assert step is not None
        if self.model.sees_collected:
            if scores is not None:
                self.trail.drafts.append((len(self.trail) + scored.nonzero().flatten(), scores))
            self.trail.append(step, features)
            if len(rows := self.search.wants_now(self.trail)):
                self.trail.rescore(rows, self.model.relocate(self.trail, rows))
        else:
            self.trail.append(step, features, scores, scored, gains)
        if self.search.wants_logits:
            self.trail.logits = self.logits
        if self._asked:
            self._asked.popleft()
            if self.step is not None:
                return  # the search has chosen already
        self.step = self.search(self.trail)


def advance(traversals: Sequence[Traversal]) -> None:
    """Take the pending step of each traversal of one model, all regions in one batch of the network."""
    model = traversals[0].model
    steps = [step for traversal in traversals if (step := traversal.pending) is not None]
    scored = [
        traversal.search.wants_scores(step.regions) & divisible(step.regions, model.grid)
        for traversal, step in zip(traversals, steps, strict=True)
    ]
    if len(steps) == 1:
        regions, pixels, all_scored = steps[0].regions, traversals[0].read(), scored[0]
    else:
        regions = Regions.concat([step.regions for step in steps])
        pixels, all_scored = torch.cat([traversal.read() for traversal in traversals]), torch.cat(scored)
    seen = model.encode(pixels, regions)
    tables = model.locate(seen, regions, all_scored), model.gains(seen, regions, all_scored)
    features, row = seen.feature, 0
    for traversal, step in zip(traversals, steps, strict=True):
        end = row + len(step.regions)
        if not len(traversal.trail):
            traversal.trail.start = model.begin(seen.cell_map[row:end], step.regions, traversal.scene.sizes_hw)
        row = end
    del seen, pixels  # the largest tensors
    row = score_row = 0
    for traversal, step, mask in zip(traversals, steps, scored, strict=True):
        count, score_count = len(step.regions), int(mask.sum())
        mine = slice(score_row, score_row + score_count)
        scores, gains = (None if table is None or not score_count else table[mine] for table in tables)
        traversal.append(features[row : row + count], scores, mask, gains)
        row, score_row = row + count, score_row + score_count


def traverse_all(
    model: Traversable,
    images: Iterable[SingleImage],
    search: Search,
    *,
    glimpses: int = 32,
    active: int = 256,
) -> Iterator[ModelOutput | ImageError]:
    """Run a search over a stream of images with full batches of glimpses, and yield the outputs in order.

    Images that are done make place for the next, so that easy images do not wait for hard ones; a batch of the network
    mixes images, and levels of regions. The outputs are those of one image at a time.

    Args:
        model: a model in evaluation mode.
        images: inputs of one image each, taken as they are needed.
        search: decides where to look in every image.
        glimpses: smallest number of regions per batch of the network while there are enough.
        active: largest number of images that are under way, or done and waiting for an earlier one.

    Returns:
        One output per image; an :class:`ImageError` for an image that could not be read, without harm to others.
    """
    if glimpses < 1 or active < 1:
        raise ConfigError(f"glimpses is {glimpses} and active {active}; give at least 1 of each")
    source, exhausted = iter(images), False
    fresh: deque[tuple[int, Traversal]] = deque()  # by place in the stream; nothing is seen of them
    running: deque[tuple[int, Traversal]] = deque()
    done: dict[int, ModelOutput | ImageError] = {}
    started = given = waiting = 0
    while True:
        # Whole images are seen in batches of their own, since separate batch norm statistics would divide a mixed one.
        while not exhausted and waiting < glimpses and len(fresh) < glimpses and started - given < active:
            image = next(source, None)
            if image is None:
                exhausted = True
                break
            try:
                fresh.append((started, model.search(image, search)))
            except ImageError as error:
                done[started] = error
            started += 1
        queue = fresh or running
        batch, count = [], 0
        while queue and count < glimpses:
            place, traversal = queue.popleft()
            try:
                count += len(traversal.read())
            except ImageError as error:
                done[place] = error
                continue
            batch.append((place, traversal))
        if batch:
            advance([traversal for _, traversal in batch])
        going_on = [(place, traversal) for place, traversal in batch if traversal.pending is not None]
        done |= {place: traversal.output() for place, traversal in batch if traversal.pending is None}
        # Those that were seen first stay first, so that images finish in about the order in which they started.
        if queue is fresh:
            running.extend(going_on)
        else:
            running.extendleft(reversed(going_on))
        waiting = sum(len(t.pending.regions) for _, t in running if t.pending is not None)
        while given in done:
            yield done.pop(given)
            given += 1
        if exhausted and not fresh and not running:
            return
