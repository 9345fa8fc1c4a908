"""Split of training and validation images without near duplicates across the two."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict

from mirrordepth_edge.data.sample import DepthDataset, Selected
from mirrordepth_edge.errors import InputError, OptionError

BLOCKS = 5
GAP = 5
"""Images dropped between validation and training blocks: neighbouring video frames are near duplicates."""


def hold_out(dataset: DepthDataset, share: float) -> tuple[DepthDataset, DepthDataset]:
    """Split a data set into training and validation part, deterministically.

    If names contain scenes (`SCENE/NAME`), whole scenes are held out, in the order of a hash of their names, as
    many as fit into `share`. NYU's `kitchen_0028a` and `kitchen_0028b` are parts of one recording and stay
    together. If there are no scenes, or they yield less than half of `share`, `BLOCKS` contiguous blocks of
    images in name order are held out, and up to `GAP` images on both sides of each block are dropped.

    Args:
        dataset: images to split.
        share: share of the images to hold out, 0 to 1 exclusive.

    Returns:
        Training part and validation part.

    Raises:
        OptionError: `share` is out of range.
        InputError: there are too few images.
    """
    if not 0 < share < 1:
        raise OptionError(
            f"A share of {share:g} cannot be held out.", "It must lie between 0 and 1.", "Hold out 0.05, one in 20."
        )
    count = len(dataset)
    target = max(1, round(count * share))
    if count < 2 or target == count:
        raise InputError(
            f"{count} images are too few to hold out a share of {share:g}.",
            "Training and validation need at least one image each.",
            "Record more, or validate on another data set.",
        )
    held = _scenes(dataset, target)
    dropped: set[int] = set()
    if len(held) < target / 2:
        held, dropped = _blocks(dataset, target)
    excluded = held | dropped
    kept = tuple(index for index in range(count) if index not in excluded)
    return Selected(of=dataset, indices=kept), Selected(of=dataset, indices=tuple(sorted(held)))


def scene_of(name: str) -> str:
    """Scene of a sample: its name up to the last slash, without the letter of a part."""
    return re.sub(r"(?<=\d)[a-z]$", "", name.rpartition("/")[0])


def _scenes(dataset: DepthDataset, target: int) -> set[int]:
    """Indices of whole scenes, at most `target` samples."""
    scenes: dict[str, list[int]] = defaultdict(list)
    for index in range(len(dataset)):
        scenes[scene_of(dataset.name(index))].append(index)
    held: set[int] = set()
    # Names sort rooms by kind; a hash mixes them and needs no seed.
    for scene in sorted(scenes, key=lambda scene: hashlib.sha256(scene.encode()).digest()):
        if len(held) + len(scenes[scene]) <= target:
            held.update(scenes[scene])
    return held


def _blocks(dataset: DepthDataset, target: int) -> tuple[set[int], set[int]]:
    """Indices of `target` images in contiguous blocks, and of the dropped ones beside them."""
    count = len(dataset)
    order = sorted(range(count), key=dataset.name)
    blocks = min(BLOCKS, target)
    # At most a fifth of the images is dropped, and at least one remains for training.
    gap = min(GAP, count // (10 * blocks), (count - target - 1) // (2 * blocks))
    held: set[int] = set()
    dropped: set[int] = set()
    start = 0
    for block in range(blocks):
        # The first blocks take the remainder of the division, so a block always fits its stretch.
        stretch, size = (total // blocks + (block < total % blocks) for total in (count, target))
        first = start + (stretch - size) // 2
        held.update(order[first : first + size])
        dropped.update(order[max(first - gap, 0) : first + size + gap])
        start += stretch
    return held, dropped - held
