"""Groups of images, such as the photographs of one patient, that no split tears apart; and folds.

A group is read from a column of a table, or from the path by a pattern.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import PurePath

import numpy as np
from jaxtyping import Int
from torch import Tensor

from tnet.errors import ConfigError, DataError

_GROUP = "GROUP"
_MOST_CHARACTERS = 200


def check_pattern(pattern: str, key: str) -> None:
    """Raise ConfigError unless a pattern holds ``GROUP`` once, and at most one ``*`` per part between slashes."""
    parts = pattern.split("/")
    crowded = [part for part in parts if part.count("*") > 1]  # more could take for ever to match
    if pattern.count(_GROUP) != 1 or crowded or len(pattern) > _MOST_CHARACTERS:
        remedy = f"give one {_GROUP} and at most one * per part, such as {_GROUP}_* or {_GROUP}/*"
        raise ConfigError(f"{key} is {pattern[:_MOST_CHARACTERS]!r}; {remedy}")


def group_in_path(path: PurePath, pattern: str) -> str:
    """Return the group in the last parts of a path: ``GROUP_*`` gives ``P12`` for ``left/P12_a.png``.

    ``GROUP`` takes as few characters as possible.

    Raises:
        DataError: the path does not match.
    """
    parts = pattern.split("/")
    groups = []
    # A part per folder: a group may not reach over a slash.
    for part, name in zip(parts, path.parts[-len(parts) :], strict=False):
        expression = re.escape(part).replace(r"\*", ".*?").replace(re.escape(_GROUP), "(?P<group>.+?)")
        found = re.fullmatch(expression, name, re.DOTALL)
        groups.append(None if found is None else found.groupdict().get("group", ""))
    if len(path.parts) < len(parts) or None in groups:
        raise DataError(f"the path {path} does not match the pattern of groups {pattern!r}; correct the pattern")
    return next(group for group in groups if group)


def shared_groups(train: Sequence[str] | None, val: Sequence[str] | None) -> str:
    """Describe groups that are on both sides of a split; empty if none are."""
    shared = sorted(set(train or ()) & set(val or ()))
    if not shared:
        return ""
    problem = f"{len(shared)} group(s) have both training and validation images, such as {shared[0]!r}"
    return f"{problem}; move each to one side, or set data.val to null"


def held_out_groups(
    strata: dict[int, list[int]], groups: Sequence[str], hashes: dict[str, float], fraction: float
) -> set[str]:
    """Choose groups with a hash below ``fraction`` to hold out, and keep at least one group of each class.

    Raises:
        DataError: a class has all of its images in one group, or there is a single group.
    """
    chosen = {group for group in hashes if hashes[group] < fraction} or {min(hashes, key=hashes.__getitem__)}
    for members in strata.values():
        mine = {groups[index] for index in members}
        if mine <= chosen:  # the group that is farthest from being held out stays
            chosen.remove(max(mine, key=hashes.__getitem__))
    if not chosen:
        # Another class may do without the group that one cannot do without.
        for group in sorted(hashes, key=hashes.__getitem__):
            if all({groups[index] for index in members} != {group} for members in strata.values()):
                return {group}
        problem = f"{len(hashes)} group(s), each with all images of a class, cannot be split in two"
        raise DataError(f"{problem}; add groups, or provide separate validation images")
    return chosen


def make_folds(
    targets: Int[Tensor, " images"] | Tensor, groups: Sequence[Hashable] | None, folds: int, seed: int
) -> Int[np.ndarray, " images"]:
    """Return the fold of each image: groups stay whole, and classes have about the same share in each fold.

    Args:
        targets: class index of each image; with several labels per image (2-dimensional) folds are not stratified.
        groups: group of each image; ``None`` if each is its own.
        folds: number of folds, from 2.
        seed: another number gives other folds.

    Raises:
        DataError: there are fewer groups than folds, or a class is in one group alone.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    count = len(targets) if groups is None else len(set(groups))
    unit = "images" if groups is None else "groups"
    if not 2 <= folds <= count:
        raise DataError(f"{folds} folds of {count} {unit} are asked for; give 2 to {count}")
    is_stratified = targets.ndim == 1
    if is_stratified:
        places: dict[int, set[Hashable]] = defaultdict(set)
        for index, target in enumerate(targets.tolist()):
            places[target].add(index if groups is None else groups[index])
        alone = [target for target, where in places.items() if len(where) < 2]
        if alone:
            problem = f"class number {alone[0]} has all its images in one of the {unit}"
            raise DataError(f"{problem}, and would be missing in a training; add {unit}, or leave the class out")
    grouped, plain = (StratifiedGroupKFold, StratifiedKFold) if is_stratified else (GroupKFold, KFold)
    splitter = (plain if groups is None else grouped)(folds, shuffle=True, random_state=seed)
    found = np.zeros(len(targets), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class may be in fewer groups than there are folds
        for fold, (_, held_out) in enumerate(splitter.split(found, targets.numpy(), groups)):
            found[held_out] = fold
    for target in sorted(set(targets.tolist())) if is_stratified else ():
        inside = np.unique(found[(targets == target).numpy()])
        if len(inside) == 1:
            problem = f"all images of class number {target} are in fold {inside[0]}"
            raise DataError(f"{problem}, whose training would miss them; use fewer folds, another seed, or more {unit}")
    return found
