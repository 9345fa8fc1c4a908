"""A whole training: data, network, epochs, and after each what a `kill -9` cannot take away."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mirrordepth_edge.config import ModelConfig
from mirrordepth_edge.core.checkpoint import save_checkpoint
from mirrordepth_edge.core.features import CachedViews, cached_views
from mirrordepth_edge.core.nano import create_nano
from mirrordepth_edge.core.network import DepthNetwork, create_network
from mirrordepth_edge.core.processes import joined, rank, wait_for_all
from mirrordepth_edge.core.runs import EpochResult, RunConfig, RunFolder, best_of
from mirrordepth_edge.core.trainer import Progress, Resources, Trainer, evaluate, predictor
from mirrordepth_edge.core.views import FreshViews, Problem
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.data.split import hold_out
from mirrordepth_edge.draw import side_by_side
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.files import written_whole
from mirrordepth_edge.postprocess import colourise

PICTURES = 4
"""Depth pictures an epoch, for TensorBoard."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told how training goes; in one process only, the first."""

    step: Callable[[Progress], None] = lambda progress: None
    epoch: Callable[[EpochResult], None] = lambda result: None
    problem: Callable[[Problem], None] = lambda problem: None
    """A sample was skipped; told once for each."""
    cached: Callable[[int, int], None] = lambda done, views: None
    """Views in the feature cache, of how many."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a training uses beside its settings."""

    resources: Resources = Resources()  # noqa: RUF009 - frozen
    clip_weights: Path | None = None
    cache: Path | None = None
    """Folder of the feature cache, where `TrainConfig.feature_copies` asks for one."""
    skip_bad: bool = False
    validate_every: int = 1
    """Epochs between two evaluations; the last is always evaluated."""


def datasets(config: RunConfig) -> tuple[DepthDataset, DepthDataset | None]:
    """Pictures to train on, and those held out."""
    dataset = choose_dataset(config.data, "train")
    if config.validation is not None:
        return dataset, choose_dataset(config.validation, "test")
    return hold_out(dataset, config.hold_out) if config.hold_out else (dataset, None)


def trainable_network(config: ModelConfig, clip_weights: Path | None, seed: int) -> DepthNetwork:
    """The model with CLIP's weights, mirror and decoder untrained."""
    if config.preset == "nano":
        return create_nano(config, seed)
    return create_network(config, clip_weights, seed)


def fit(
    config: RunConfig,
    folder: RunFolder,
    means: Means = Means(),
    watch: Watch = Watch(),
    *,
    resume: bool = False,
) -> Path:
    """Train a model as `config` says.

    Args:
        folder: takes everything that comes of it.
        resume: go on with the run that is in the folder, to the same numbers as without a break.

    Returns:
        The checkpoint to keep: the epoch of least AbsRel on the held-out pictures, or the last.

    Raises:
        InputError: data, weights or an earlier run cannot be used, or the loss is not finite.
        OptionError: settings that do not go together.
    """
    with joined():
        watch = watch if rank() == 0 else Watch()
        dataset, held_out = datasets(config)
        about: dict[str, Any] = {"pictures": len(dataset), "fingerprint": dataset.fingerprint()}
        if held_out is not None:
            about |= {"held_out": len(held_out), "held_out_fingerprint": held_out.fingerprint()}
        state = folder.resume(config, about) if resume else None
        if not resume and rank() == 0:
            folder.start(config, about)
        network = trainable_network(config.model, means.clip_weights, config.train.seed)
        views = _views(network.to(means.resources.device), dataset, config, means, watch)
        trainer = Trainer(network, views, config.train, means.resources, folder.bad_batch)
        return _epochs(trainer, config, folder, dataset, held_out, means, watch, state)


def _views(
    network: DepthNetwork, dataset: DepthDataset, config: RunConfig, means: Means, watch: Watch
) -> FreshViews | CachedViews:
    if means.cache is None:
        return FreshViews(dataset, config.model.size_hw, config.train, skip_bad=means.skip_bad)
    return cached_views(
        network,
        dataset,
        config.train,
        means.cache,
        workers=means.resources.workers,
        skip_bad=means.skip_bad,
        on_rows=watch.cached,
        on_problem=watch.problem,
    )


def _epochs(
    trainer: Trainer,
    config: RunConfig,
    folder: RunFolder,
    dataset: DepthDataset,
    held_out: DepthDataset | None,
    means: Means,
    watch: Watch,
    state: dict[str, Any] | None,
) -> Path:
    done = 0
    if state is not None:
        done = int(state["epochs"])
        trainer.restore(state["trainer"])
    results = folder.results()[:done]
    training = {"pictures": len(dataset), "fingerprint": dataset.fingerprint(), "settings": asdict(config.train)}
    shown = held_out if held_out is not None else dataset
    board = _Board(folder, trainer, shown, done) if rank() == 0 else None
    problems: set[int] = set()
    last: Progress | None = None

    def note(problem: Problem) -> None:
        if problem.sample not in problems:
            problems.add(problem.sample)
            watch.problem(problem)

    def step(progress: Progress) -> None:
        nonlocal last
        last = progress
        if board is not None:
            board.step(progress)
        watch.step(progress)

    for epoch in range(done, config.train.epochs):
        began = time.perf_counter()
        loss = trainer.run_epoch(epoch, step, note)
        seconds = time.perf_counter() - began
        due = (epoch + 1) % means.validate_every == 0 or epoch + 1 == config.train.epochs
        if board is not None and last is not None:
            with trainer.averaged_weights():
                metrics = None
                if held_out is not None and due:
                    metrics = evaluate(trainer.network, held_out, config.protocol).mean
                    measured = {"pictures": len(held_out), "protocol": asdict(config.protocol), **asdict(metrics)}
                    training["validation"] = measured
                result = EpochResult(
                    epoch=epoch + 1,
                    loss=loss,
                    learning_rate=last.learning_rate,
                    seconds=seconds,
                    skipped=len(problems),
                    metrics=metrics,
                )
                results.append(result)
                places = [folder.checkpoint(epoch + 1)] + ([folder.best] if result is best_of(results) else [])
                for place in places:
                    save_checkpoint(trainer.network, place, training={**training, "epoch": epoch + 1})
                board.epoch(result)
            folder.write_history(results)
            # Last, so that it never speaks of files that are not there.
            with written_whole(folder.state) as temporary:
                torch.save({"epochs": epoch + 1, "trainer": trainer.state()}, temporary)
            watch.epoch(result)
        wait_for_all()
    if board is not None:
        board.close()
    return folder.best if held_out is not None else folder.checkpoint(config.train.epochs)


class _Board:
    """TensorBoard's files of a run."""

    def __init__(self, folder: RunFolder, trainer: Trainer, shown: DepthDataset, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._network = trainer.network
        self._step = done * trainer.steps // trainer.config.epochs
        # What a killed epoch left behind is dropped.
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=self._step + 1)
        spread = sorted({len(shown) * place // PICTURES for place in range(PICTURES)})
        self._shown = []
        for index in spread:
            with suppress(InputError):  # pictures are nice to have; whoever needs this one says so
                self._shown.append(shown[index])

    def step(self, progress: Progress) -> None:
        self._step = progress.step
        self._writer.add_scalar("train/loss", progress.loss, progress.step)
        self._writer.add_scalar("train/learning_rate", progress.learning_rate, progress.step)

    def epoch(self, result: EpochResult) -> None:
        for name, value in (asdict(result.metrics) if result.metrics else {}).items():
            self._writer.add_scalar(f"validation/{name}", value, self._step)
        predict, limits_m = predictor(self._network), self._network.config.depth_limits_m
        for sample in self._shown:
            depths = (colourise(depth_m, limits_m) for depth_m in (predict(sample.frame), sample.depth_m))
            row = side_by_side([sample.frame, *depths])
            self._writer.add_image(sample.name, row, self._step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
