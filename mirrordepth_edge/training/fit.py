"""A whole training: data, network, epochs, and after each what a `kill -9` cannot take away."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mirrordepth_edge.config import ModelConfig
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.data.split import hold_out
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.evaluation.evaluate import check_samples
from mirrordepth_edge.imaging.draw import side_by_side
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.model.checkpoint import save_checkpoint, start_from
from mirrordepth_edge.model.nano import create_nano
from mirrordepth_edge.model.network import DepthNetwork, create_network
from mirrordepth_edge.training.distributed import all_gather, barrier, init_distributed, rank
from mirrordepth_edge.training.features import CachedViews, cached_views
from mirrordepth_edge.training.runs import EpochResult, RunConfig, RunFolder, best_of
from mirrordepth_edge.training.trainer import Progress, Resources, Trainer, evaluate, predictor
from mirrordepth_edge.training.views import FreshViews, Problem

PICTURES = 4
"""Depth pictures an epoch, for TensorBoard."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Who is told how training goes; in one process only, the first."""

    step: Callable[[Progress], None] = lambda progress: None
    epoch: Callable[[EpochResult], None] = lambda result: None
    problem: Callable[[Problem], None] = lambda problem: None
    """A sample was skipped; told once for each."""
    cached: Callable[[int, int], None] = lambda done, views: None
    """Views in the feature cache, of how many."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
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
        return create_nano(config, seed, clip_weights)
    return create_network(config, clip_weights, seed)


def fit(
    config: RunConfig,
    folder: RunFolder,
    options: TrainOptions = TrainOptions(),
    callbacks: Callbacks = Callbacks(),
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
        MissingError: a package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise missing_package("TensorBoard", "Training", "train")
    with init_distributed(options.resources.device):
        callbacks = callbacks if rank() == 0 else Callbacks()
        dataset, held_out = datasets(config)
        network = trainable_network(config.model, options.clip_weights, config.train.seed)
        about = {"pictures": len(dataset), "fingerprint": dataset.fingerprint(), "clip_sha256": network.clip_sha256}
        if config.start_from is not None:
            about["started_from"] = start_from(network, config.start_from).weights_sha256
        if held_out is not None:
            about |= {"held_out": len(held_out), "held_out_fingerprint": held_out.fingerprint()}
        state = folder.resume(config, about) if resume else None
        if rank() == 0:
            if state is None:
                folder.start(config, about)
            check_samples(held_out or (), config.protocol)  # now, not after an epoch
        skipped = _Skipped(callbacks.problem)
        views = _views(network.to(options.resources.device), dataset, config, options, callbacks, skipped)
        trainer = Trainer(network, views, config.train, options.resources, folder.bad_batch)
        done = 0
        if state is not None:
            done = int(state["epochs"])
            trainer.restore(state["trainer"])
        if rank() == 0:
            shown = dataset if held_out is None else held_out
            with _TensorBoardLogger(folder, trainer, shown, done) as board:
                keeper = _CheckpointWriter(trainer, config, folder, held_out, about, board, folder.results()[:done])
                _epochs(trainer, done, keeper, options.validate_every, callbacks, skipped)
        else:
            _epochs(trainer, done, None, options.validate_every, callbacks, skipped)
    return folder.checkpoint(config.train.epochs) if held_out is None else folder.best


def _views(
    network: DepthNetwork,
    dataset: DepthDataset,
    config: RunConfig,
    options: TrainOptions,
    callbacks: Callbacks,
    skipped: _Skipped,
) -> FreshViews | CachedViews:
    if options.cache is None:
        return FreshViews(dataset, config.model.size_hw, config.train, skip_bad=options.skip_bad)
    return cached_views(
        network,
        dataset,
        config.train,
        options.cache,
        workers=options.resources.workers,
        skip_bad=options.skip_bad,
        on_rows=callbacks.cached,
        on_problem=skipped,
    )


def _epochs(
    trainer: Trainer,
    done: int,
    keeper: _CheckpointWriter | None,
    validate_every: int,
    callbacks: Callbacks,
    skipped: _Skipped,
) -> None:
    """Train; in the first process, with a keeper, also measure and write."""
    last: Progress | None = None

    def step(progress: Progress) -> None:
        nonlocal last
        last = progress
        if keeper is not None:
            keeper.board.step(progress)
        callbacks.step(progress)

    epochs = trainer.config.epochs
    for epoch in range(done + 1, epochs + 1):
        began = time.perf_counter()
        loss = trainer.run_epoch(epoch - 1, step, skipped)
        seconds, count = time.perf_counter() - began, skipped.count()
        if keeper is not None and last is not None:
            due = epoch % validate_every == 0 or epoch == epochs
            result = EpochResult(
                epoch=epoch, loss=loss, learning_rate=last.learning_rate, seconds=seconds, skipped=count, metrics=None
            )
            callbacks.epoch(keeper.keep(result, validate=due))
        barrier()


class _Skipped:
    """Samples that were skipped: each told once, and counted over all processes."""

    def __init__(self, tell: Callable[[Problem], None]) -> None:
        self._tell = tell
        self._samples: set[int] = set()

    def __call__(self, problem: Problem) -> None:
        if problem.sample not in self._samples:
            self._samples.add(problem.sample)
            self._tell(problem)

    def count(self) -> int:
        """To be called in every process."""
        return len(all_gather(self._samples))


class _CheckpointWriter:
    """Measures and writes what an epoch gave."""

    def __init__(
        self,
        trainer: Trainer,
        config: RunConfig,
        folder: RunFolder,
        held_out: DepthDataset | None,
        about: dict[str, Any],
        board: _TensorBoardLogger,
        results: list[EpochResult],
    ) -> None:
        self.board = board
        self._trainer, self._config, self._folder, self._held_out = trainer, config, folder, held_out
        self._training = {**about, "settings": asdict(config.train)}
        self._results = results

    def keep(self, result: EpochResult, *, validate: bool) -> EpochResult:
        """Checkpoint, history and state of an epoch; the result with its metrics."""
        with self._trainer.averaged_weights():
            training = {**self._training, "epoch": result.epoch}
            if self._held_out is not None and validate:
                protocol = self._config.protocol
                metrics = evaluate(self._trainer.network, self._held_out, protocol).mean
                result = replace(result, metrics=metrics)
                measured = {"pictures": len(self._held_out), "protocol": asdict(protocol), **asdict(metrics)}
                training["validation"] = measured
            self._results.append(result)
            is_best = result is best_of(self._results)
            for path in (self._folder.checkpoint(result.epoch), *([self._folder.best] if is_best else [])):
                save_checkpoint(self._trainer.network, path, training=training)
            self.board.epoch(result)
        self._folder.write_history(self._results)
        # Last, so that it never speaks of files that are not there.
        self._folder.write_state({"epochs": result.epoch, "trainer": self._trainer.state()})
        return result


class _TensorBoardLogger:
    """TensorBoard's files of a run."""

    def __enter__(self) -> _TensorBoardLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

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
