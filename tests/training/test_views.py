"""Order of samples, split over processes, augmented views and unreadable samples."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import torch
from torch.utils.data import DataLoader

from mirrordepth_edge.config import TrainConfig
from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.training.views import EpochBatchSampler, FreshViews, collate, limit_worker_threads

CONFIG = TrainConfig(batch_size=4, seed=5)
SIZE = (32, 48)


def test_epoch_has_every_sample_once_in_a_new_order() -> None:
    order = EpochBatchSampler(12, CONFIG)
    first = [index for batch in order for _, index in batch]
    order.epoch = 1
    second = [index for batch in order for _, index in batch]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert [index for batch in EpochBatchSampler(12, CONFIG) for _, index in batch] == first


def test_remainder_differs_by_epoch() -> None:
    order, left_out = EpochBatchSampler(14, CONFIG), set()
    for epoch in range(20):
        order.epoch = epoch
        seen = {index for batch in order for _, index in batch}
        assert len(seen) == 12 == 4 * order.steps
        left_out |= set(range(14)) - seen
    assert len(left_out) > 8


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_split_the_batches_of_one_process(accumulate: int) -> None:
    config = TrainConfig(batch_size=8, seed=5, accumulate=accumulate)
    alone = EpochBatchSampler(40, TrainConfig(batch_size=8, seed=5))
    shares = [EpochBatchSampler(40, config, rank, 2) for rank in (0, 1)]
    assert {len(share) for share in shares} == {5 * accumulate}
    parts = [list(share) for share in shares]
    for step, batch in enumerate(alone):
        own = [part for share in parts for part in share[step * accumulate : (step + 1) * accumulate]]
        assert {len(part) for part in own} == {4 // accumulate}
        assert Counter(draw for part in own for draw in part) == Counter(batch)


def test_batch_that_cannot_be_split_evenly() -> None:
    with pytest.raises(OptionError, match="batch of 8") as caught:
        EpochBatchSampler(100, TrainConfig(batch_size=8), 0, 3)
    assert caught.value.cure == "--batch-size 6"
    EpochBatchSampler(100, TrainConfig(batch_size=6), 0, 3)  # the cure is one
    with pytest.raises(OptionError, match="batch of 1 ") as caught:
        EpochBatchSampler(1, TrainConfig(batch_size=8), 0, 2)
    assert "fewer processes" in caught.value.cure


def test_few_images_make_one_batch() -> None:
    assert EpochBatchSampler(3, TrainConfig(batch_size=16)).steps == 1


def test_views_differ_by_epoch_and_sample_and_repeat_by_seed(samples: DepthDataset) -> None:
    views = FreshViews(samples, SIZE, CONFIG)
    first = views[0, 0]
    assert first.inputs[0].shape == (*SIZE, 3)
    assert first.truth_m.shape == SIZE
    assert torch.equal(FreshViews(samples, SIZE, CONFIG)[0, 0].inputs[0], first.inputs[0])
    assert not torch.equal(views[1, 0].inputs[0], first.inputs[0])
    assert not torch.equal(views[0, 1].inputs[0], first.inputs[0])


def test_loader_processes_give_the_same_batches(rgbd_folder: Path) -> None:
    views = FreshViews(folder_dataset(rgbd_folder), SIZE, CONFIG)

    def batches(workers: int) -> list[torch.Tensor]:
        order = EpochBatchSampler(len(views), CONFIG)
        loader = DataLoader(
            views, batch_sampler=order, num_workers=workers, collate_fn=collate, worker_init_fn=limit_worker_threads
        )
        return [batch.inputs[0] for batch in loader]

    assert all(torch.equal(a, b) for a, b in zip(batches(0), batches(2), strict=True))


def test_views_can_be_pickled(rgbd_folder: Path) -> None:
    views = FreshViews(folder_dataset(rgbd_folder), SIZE, CONFIG)
    copy = pickle.loads(pickle.dumps(views))
    assert torch.equal(copy[0, 3].inputs[0], views[0, 3].inputs[0])


def test_unreadable_sample_is_reported_or_replaced(rgbd_folder: Path) -> None:
    (rgbd_folder / "rgb" / "04.png").write_bytes(b"no picture")
    cv2.imwrite(str(rgbd_folder / "depth" / "05.png"), np.zeros((60, 80), np.uint8))
    dataset = folder_dataset(rgbd_folder)
    view = FreshViews(dataset, SIZE, CONFIG)[2, 4]
    assert not view.inputs
    assert "04.png" in view.problems[0].what
    assert collate([view, FreshViews(dataset, SIZE, CONFIG)[2, 0]]).inputs == []

    replaced = FreshViews(dataset, SIZE, CONFIG, skip_bad=True)[2, 4]
    assert replaced.sample == 6
    assert [problem.sample for problem in replaced.problems] == [4, 5]
    assert torch.equal(replaced.inputs[0], FreshViews(dataset, SIZE, CONFIG)[2, 6].inputs[0])


def test_data_set_without_readable_samples(rgbd_folder: Path) -> None:
    for path in (rgbd_folder / "rgb").iterdir():
        path.write_bytes(b"no picture")
    view = FreshViews(folder_dataset(rgbd_folder), SIZE, CONFIG, skip_bad=True)[0, 7]
    assert not view.inputs
    assert len(view.problems) == 12
