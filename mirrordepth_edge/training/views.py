"""Augmented views of samples and their order, reproducible from the seed.

A view depends only on seed, epoch and index, the order of an epoch only on seed and epoch. So the number of processes
that load or train does not change them, nor does resuming a run.
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
"""Epoch (or copy of the data, in a feature cache) and index of the sample."""


class UnreadableSample(NamedTuple):
    """Why a sample could not be read."""

    # Not an `MdeError`: those cannot be pickled, and this is sent from data loader processes.

    sample: int
    what: str
    why: str
    cure: str


class View(NamedTuple):
    """An augmented sample."""

    sample: int
    inputs: list[Tensor]
    """The image uint8 `[h, w, 3]`, or its features of the image tower, float16, deepest first."""
    truth_m: Tensor
    """float `[h, w]`, metres; 0 is no measurement."""
    problems: tuple[UnreadableSample, ...] = ()


class Batch(NamedTuple):
    """Stacked views."""

    samples: list[int]
    inputs: list[Tensor]
    truth_m: Tensor
    problems: list[UnreadableSample]

    def unreadable(self) -> InputError:
        """The error for a batch without inputs."""
        problem = self.problems[-1]
        return InputError(problem.what, problem.why, f"{problem.cure} To skip such samples, use --skip-bad.")


class FreshViews(Dataset):
    """Views that are read and augmented on each access.

    Args:
        dataset: images with depth.
        size_hw: input size of the network.
        config: augmentation and seed.
        skip_bad: replace an unreadable sample by the next readable one.
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
        problems: list[UnreadableSample] = []
        for index in ((first + step) % len(self) for step in range(len(self))):
            try:
                sample = self.dataset[index]
            except InputError as error:
                problems.append(UnreadableSample(index, error.what, error.why, error.cure))
                if not self.skip_bad:
                    break
                continue
            # Seeded by the sample, not by the process: the number of workers does not change a view.
            rng = np.random.default_rng((self.config.seed, epoch, index))
            frame, depth_m = augment(sample.frame, sample.depth_m, self.size_hw, self.config, rng)
            return View(index, [torch.from_numpy(frame)], torch.from_numpy(depth_m), tuple(problems))
        return View(first, [], torch.empty(0), tuple(problems))


def collate(views: list[View]) -> Batch:
    """Stack views; the batch has no inputs if a view has none."""
    problems = [problem for view in views for problem in view.problems]
    samples = [view.sample for view in views]
    if any(not view.inputs for view in views):
        return Batch(samples, [], torch.empty(0), problems)
    inputs = [torch.stack(same) for same in zip(*(view.inputs for view in views), strict=True)]
    return Batch(samples, inputs, torch.stack([view.truth_m for view in views]), problems)


class EpochBatchSampler:
    """Batch sampler of an epoch: random order, batches split evenly over processes and accumulation steps.

    Samples that do not fill the last batch are left out, different ones in each epoch.

    Args:
        count: number of samples.
        config: batch size, accumulation steps and seed.
        rank: of this process.
        world: number of processes.

    Raises:
        OptionError: the batch cannot be split evenly.
    """

    def __init__(self, count: int, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.count, self.config, self.rank, self.world = count, config, rank, world
        self.batch_size = min(config.batch_size, count)
        self.epoch = 0
        shares = world * config.accumulate
        if self.batch_size % shares:
            fewer = f"Use at most {self.batch_size} parts: fewer processes, or a smaller accumulate."
            raise OptionError(
                f"A batch of {self.batch_size} images cannot be split evenly.",
                f"{world} processes with {config.accumulate} accumulation steps each need a multiple of {shares}.",
                f"--batch-size {self.batch_size // shares * shares}" if self.batch_size > shares else fewer,
            )

    @property
    def steps(self) -> int:
        """Number of optimiser steps per epoch."""
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
    """Disable OpenCV threads in a data loader process."""
    # Each process would start a thread per core.
    cv2.setNumThreads(0)
