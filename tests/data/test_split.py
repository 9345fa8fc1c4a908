"""Holding out images: no image is in both parts, and no near duplicates are split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.data.split import BLOCKS, GAP, hold_out, scene_of
from mirrordepth_edge.errors import InputError, OptionError


class Named(DepthDataset):
    """Samples with names only."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def files(self) -> list[Path]:
        return []

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.names[index], np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), np.float32))


def names(data: DepthDataset) -> list[str]:
    return [sample.name for sample in data]


def recording(scenes: int = 60, seed: int = 0) -> list[str]:
    """Scenes of 5 to 40 pictures, each recorded in parts a and b, as NYU names them."""
    rng = np.random.default_rng(seed)
    return [
        f"{room}_{scene:04d}{part}/{picture:05d}"
        for scene, room in zip(range(scenes), ["bath", "kitchen", "office"] * scenes, strict=False)
        for part in "ab"
        for picture in range(int(rng.integers(5, 21)))
    ]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_whole_scenes_are_held_out(share: float, seed: int) -> None:
    everything = recording(seed=seed)
    train, held = (names(part) for part in hold_out(Named(everything), share))
    assert sorted(train + held) == sorted(everything)
    rooms = [{name.split("/")[0][:-1] for name in part} for part in (train, held)]
    assert not rooms[0] & rooms[1], "parts of one recording stay together"
    assert 0.5 * share <= len(held) / len(everything) <= share + 0.5 / len(everything)
    assert len({room.split("_")[0] for room in rooms[1]}) > 1, "of several kinds"


def test_the_order_of_the_pictures_does_not_matter() -> None:
    everything = recording()
    shuffled = [everything[i] for i in np.random.default_rng(0).permutation(len(everything))]
    flat = [name.replace("/", "-") for name in everything]
    flat_shuffled = [name.replace("/", "-") for name in shuffled]
    for one, other in ((everything, shuffled), (flat, flat_shuffled)):
        first, second = hold_out(Named(one), 0.1), hold_out(Named(other), 0.1)
        assert [set(names(part)) for part in first] == [set(names(part)) for part in second]


def test_the_order_within_each_part_is_kept() -> None:
    for everything in (recording(), [f"{i:05d}" for i in range(300)]):
        for part in hold_out(Named(everything), 0.2):
            places = [everything.index(name) for name in names(part)]
            assert places == sorted(places)


@pytest.mark.parametrize("scenes", [1, 2])
def test_blocks_are_held_out_if_there_are_too_few_scenes(scenes: int) -> None:
    count = 500
    everything = [f"room_{i * scenes // count}/{i:05d}" for i in range(count)]
    train, held = hold_out(Named(everything), 0.1)
    assert len(held) == 50
    trained = np.array([int(name[-5:]) for name in names(train)])
    seen = np.array([int(name[-5:]) for name in names(held)])
    assert np.count_nonzero(np.diff(seen) > 1) + 1 == BLOCKS
    nearest = np.abs(seen[:, None] - trained).min()
    assert nearest == GAP + 1
    assert len(train) == count - 50 - 2 * GAP * BLOCKS
    thirds = Counter(int(number) * 3 // count for number in seen)
    assert set(thirds) == {0, 1, 2}, "spread over the recording"


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8, 11, 49, 50, 103])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.34, 0.5, 0.9])
def test_any_number_of_pictures(count: int, share: float) -> None:
    target = max(1, round(count * share))
    data = Named([f"{i:03d}" for i in range(count)])
    if target == count:
        with pytest.raises(InputError, match="too few"):
            hold_out(data, share)
        return
    train, held = (set(names(part)) for part in hold_out(data, share))
    assert len(held) == target
    assert train
    assert not train & held
    assert len(train) + len(held) >= 0.8 * count


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_invalid_shares(share: float) -> None:
    with pytest.raises(OptionError, match="cannot be held out"):
        hold_out(Named(recording()), share)


def test_too_few_images() -> None:
    for everything in ([], ["only"]):
        with pytest.raises(InputError, match="too few"):
            hold_out(Named(everything), 0.1)


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        ("kitchen_0028b/00045", "kitchen_0028"),
        (
            "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/69",
            "2011_09_26/2011_09_26_drive_0002_sync/image_02/data",
        ),
        ("office/1", "office"),
        ("0001", ""),
    ],
)
def test_scenes_in_names(name: str, scene: str) -> None:
    assert scene_of(name) == scene
