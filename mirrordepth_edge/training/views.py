"""Augmented views of samples, in an order that only the seed decides.

A view is drawn by `(epoch, index)` alone, and so is the order of an epoch. However many processes
load or train, and wherever a run is taken up again, they see the same pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mirrordepth_edge.config import SizeHW, TrainConfig
from mirrordepth_edge.data.augment import augment
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.errors import InputError, OptionError

Draw = tuple[int, int]
"""Epoch, or copy of the data, and index of the sample."""


class Problem(NamedTuple):
    """Why a sample could not be read; an exception would not survive the way between processes."""

    sample: int
    what: str
    why: str
    cure: str


class View(NamedTuple):
    """What the trainer gets of one sample."""

    sample: int
    inputs: list[Tensor]
    """The picture, uint8 `[h, w, 3]`; or the tower's taps of it, float16, deepest first."""
    truth_m: Tensor
    """float `[h, w]`, metres; 0 where nothing was measured."""
    problems: tuple[Problem, ...] = ()


class Batch(NamedTuple):
    """Views side by side."""

    samples: list[int]
    inputs: list[Tensor]
    truth_m: Tensor
    problems: list[Problem]

    def unreadable(self) -> InputError:
        """Why there is nothing in it."""
        problem = self.problems[-1]
        return InputError(problem.what, problem.why, f"{problem.cure} Or leave such samples out: --skip-bad.")


class FreshViews(Dataset):
    """Samples read and augmented anew each time.

    Args:
        dataset: pictures and depth.
        size_hw: the network's size.
        config: augmentation and seed.
        skip_bad: put the next readable sample in the place of one that cannot be read.
    """

    def __init__(self, dataset: DepthDataset, size_hw: SizeHW, config: TrainConfig, *, skip_bad: bool = False) -> None:
        self.dataset = dataset
        self.size_hw = size_hw
        self.config = config
        self.skip_bad = skip_bad

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> View:
        epoch, first = draw
        problems: list[Problem] = []
        for index in ((first + step) % len(self) for step in range(len(self))):
            try:
                sample = self.dataset[index]
            except InputError as error:
                problems.append(Problem(index, error.what, error.why, error.cure))
                if not self.skip_bad:
                    break
                continue
            rng = np.random.default_rng((self.config.seed, epoch, index))
            frame, depth_m = augment(sample.frame, sample.depth_m, self.size_hw, self.config, rng)
            return View(index, [torch.from_numpy(frame)], torch.from_numpy(depth_m), tuple(problems))
        return View(first, [], torch.empty(0), tuple(problems))


def collate(views: list[View]) -> Batch:
    """Stack views.

    A view without a picture makes a batch without pictures, whose problems say why.
    """
    problems = [problem for view in views for problem in view.problems]
    samples = [view.sample for view in views]
    if any(not view.inputs for view in views):
        return Batch(samples, [], torch.empty(0), problems)
    inputs = [torch.stack(same) for same in zip(*(view.inputs for view in views), strict=True)]
    return Batch(samples, inputs, torch.stack([view.truth_m for view in views]), problems)


class EpochBatchSampler:
    """Draws of an epoch in random order, cut into batches: this process's share of each.

    What does not fill the last batch is left out, another remainder each epoch.

    Args:
        count: samples.
        config: batch size, parts a batch is computed in, seed.
        rank, world: this process, and how many train together.

    Raises:
        OptionError: the batch cannot be shared out evenly.
    """

    def __init__(self, count: int, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.count, self.config, self.rank, self.world = count, config, rank, world
        self.batch_size = min(config.batch_size, count)
        self.epoch = 0
        shares = world * config.accumulate
        if self.batch_size % shares:
            fewer = f"Use at most {self.batch_size} shares: fewer processes, or a smaller accumulate."
            raise OptionError(
                f"A batch of {self.batch_size} pictures cannot be shared out.",
                f"{world} processes with {config.accumulate} parts each make {shares} equal shares.",
                f"--batch-size {self.batch_size // shares * shares}" if self.batch_size > shares else fewer,
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return self.count // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.config.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self.config.seed, self.epoch)).permutation(self.count)
        for step in range(self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            for part in np.split(batch[self.rank :: self.world], self.config.accumulate):
                yield [(self.epoch, int(index)) for index in part]


def limit_worker_threads(worker: int) -> None:
    """For processes that load data: they are many, so OpenCV shall not start threads in each."""
    cv2.setNumThreads(0)
