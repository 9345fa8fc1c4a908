"""Holding out some of the training pictures, so that none has a near twin among the others."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict

from mirrordepth_edge.data.sample import DepthDataset, Selected
from mirrordepth_edge.errors import InputError, OptionError

BLOCKS = 5
GAP = 5
"""Pictures between what is held out and what is trained on, for neighbours of a video show the same."""


def hold_out(dataset: DepthDataset, share: float) -> tuple[DepthDataset, DepthDataset]:
    """Split pictures for training from pictures for validation; the same way every time.

    Where names carry a scene, as `SCENE/NAME`, whole scenes are held out, in the order of a hash of
    their names, as many as fit into `share`. NYU's `kitchen_0028a` and `kitchen_0028b` are parts of
    one recording and stay together. Where there are no scenes, or so few and large that not half
    of `share` can be had from them, `BLOCKS` stretches spread over the pictures in the order of
    their names are held out, and up to `GAP` pictures on either side of each are left out of both.

    Args:
        share: of the pictures to hold out, above 0 and below 1.

    Returns:
        Those to train on and those held out.

    Raises:
        OptionError: the share is none.
        InputError: there are not enough pictures to leave some for each.
    """
    if not 0 < share < 1:
        raise OptionError(
            f"A share of {share:g} cannot be held out.", "It is above 0 and below 1.", "Hold out 0.05, one in 20."
        )
    count = len(dataset)
    target = max(1, round(count * share))
    if count < 2 or target == count:
        raise InputError(
            f"{count} pictures are too few to hold out a share of {share:g}.",
            "Both training and validation need at least one.",
            "Record more, or name a data set to validate on.",
        )
    held = _scenes(dataset, target)
    dropped: set[int] = set()
    if len(held) < target / 2:
        held, dropped = _blocks(dataset, target)
    unseen = held | dropped
    kept = tuple(index for index in range(count) if index not in unseen)
    return Selected(of=dataset, indices=kept), Selected(of=dataset, indices=tuple(sorted(held)))


def scene_of(name: str) -> str:
    """The scene in a sample's name: what is before the last slash, without the letter of a part."""
    return re.sub(r"(?<=\d)[a-z]$", "", name.rpartition("/")[0])


def _scenes(dataset: DepthDataset, target: int) -> set[int]:
    """Indices of whole scenes, at most `target`."""
    scenes: dict[str, list[int]] = defaultdict(list)
    for index in range(len(dataset)):
        scenes[scene_of(dataset.name(index))].append(index)
    held: set[int] = set()
    # A hash mixes kinds of rooms, which names sort together, and needs no seed.
    for scene in sorted(scenes, key=lambda scene: hashlib.sha256(scene.encode()).digest()):
        if len(held) + len(scenes[scene]) <= target:
            held.update(scenes[scene])
    return held


def _blocks(dataset: DepthDataset, target: int) -> tuple[set[int], set[int]]:
    """Indices of `target` pictures in stretches, and of those beside them."""
    count = len(dataset)
    order = sorted(range(count), key=dataset.name)
    blocks = min(BLOCKS, target)
    # What is dropped is at most a fifth of the pictures, and never all that would be left.
    gap = min(GAP, count // (10 * blocks), (count - target - 1) // (2 * blocks))
    held: set[int] = set()
    dropped: set[int] = set()
    start = 0
    for block in range(blocks):
        # The first ones are longer by one where it does not divide: a block always fits its stretch.
        stretch, size = (total // blocks + (block < total % blocks) for total in (count, target))
        first = start + (stretch - size) // 2
        held.update(order[first : first + size])
        dropped.update(order[max(first - gap, 0) : first + size + gap])
        start += stretch
    return held, dropped - held
