"""A complete training run: data, network, epochs, checkpoints. It can be killed at any time and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.data.split import hold_out
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.evaluation.evaluate import check_samples
from mirrordepth_edge.imaging.draw import side_by_side
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.model.checkpoint import save_checkpoint, start_from
from mirrordepth_edge.model.nano import create_nano
from mirrordepth_edge.model.network import create_network
from mirrordepth_edge.training.distributed import all_gather, barrier, init_distributed, rank
from mirrordepth_edge.training.features import CachedViews, cached_views
from mirrordepth_edge.training.runs import EpochResult, RunConfig, RunFolder, best_of
from mirrordepth_edge.training.trainer import Progress, Resources, Trainer, evaluate, predictor
from mirrordepth_edge.training.views import FreshViews, UnreadableSample

TENSORBOARD_IMAGES = 4
"""Number of depth images per epoch."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Progress callbacks; called in the first process only."""

    step: Callable[[Progress], None] = lambda progress: None
    epoch: Callable[[EpochResult], None] = lambda result: None
    problem: Callable[[UnreadableSample], None] = lambda problem: None
    """Called once for each skipped sample."""
    cached: Callable[[int, int], None] = lambda done, views: None
    """Called with the number of views in the feature cache and of all views."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options that do not affect the result of a training, except for skipped samples."""

    resources: Resources = Resources()  # noqa: RUF009 - frozen
    clip_weights: Path | None = None
    cache: Path | None = None
    """Folder of the feature cache with `TrainConfig.feature_copies` copies; None for no cache."""
    skip_bad: bool = False
    validate_every: int = 1
    """Validate every n-th epoch, and always the last."""


def datasets(config: RunConfig) -> tuple[DepthDataset, DepthDataset | None]:
    """Open training and validation data; None for no validation."""
    dataset = choose_dataset(config.data, "train")
    if config.validation is not None:
        return dataset, choose_dataset(config.validation, "test")
    return hold_out(dataset, config.hold_out) if config.hold_out else (dataset, None)


def fit(
    config: RunConfig,
    folder: RunFolder,
    options: TrainOptions = TrainOptions(),
    callbacks: Callbacks = Callbacks(),
    *,
    resume: bool = False,
) -> Path:
    """Train a model.

    Args:
        config: all settings that affect the result.
        folder: folder of the run.
        options: resources and files.
        callbacks: progress callbacks.
        resume: continue the run in the folder; gives the same numbers as without interruption.

    Returns:
        Path of the checkpoint with the lowest validation AbsRel, or of the last one without validation.

    Raises:
        InputError: data, weights or the earlier run cannot be used, or the loss is not finite.
        OptionError: settings exclude each other.
        MissingError: a package is not installed.
    """
    if find_spec("tensorboard") is None:
        raise missing_package("TensorBoard", "Training", "train")
    with init_distributed(options.resources.device):
        callbacks = callbacks if rank() == 0 else Callbacks()
        dataset, held_out = datasets(config)
        create = create_nano if config.model.preset == "nano" else create_network
        network = create(config.model, seed=config.train.seed, clip_weights=options.clip_weights)
        about = {"pictures": len(dataset), "fingerprint": dataset.fingerprint(), "clip_sha256": network.clip_sha256}
        if config.start_from is not None:
            about["started_from"] = start_from(network, config.start_from).weights_sha256
        if held_out is not None:
            about |= {"held_out": len(held_out), "held_out_fingerprint": held_out.fingerprint()}
        state = folder.resume(config, about) if resume else None
        if rank() == 0:
            if state is None:
                folder.start(config, about)
            check_samples(held_out or (), config.protocol)  # fail now, not after the first epoch
        skipped = _Skipped(callbacks.problem)
        views: FreshViews | CachedViews
        if options.cache is None:
            views = FreshViews(dataset, config.model.size_hw, config.train, skip_bad=options.skip_bad)
        else:
            views = cached_views(
                network.to(options.resources.device),
                dataset,
                config.train,
                options.cache,
                workers=options.resources.workers,
                skip_bad=options.skip_bad,
                on_rows=callbacks.cached,
                on_problem=skipped,
            )
        trainer = Trainer(network, views, config.train, options.resources, folder.bad_batch)
        done = 0
        if state is not None:
            done = int(state["epochs"])
            trainer.restore(state["trainer"])
        with ExitStack() as stack:
            writer = None
            if rank() == 0:
                shown = dataset if held_out is None else held_out
                board = stack.enter_context(closing(_TensorBoardLogger(folder, trainer, shown, done)))
                writer = _CheckpointWriter(trainer, config, folder, held_out, about, board, folder.results()[:done])
            _epochs(trainer, done, writer, options.validate_every, callbacks, skipped)
    return folder.checkpoint(config.train.epochs) if held_out is None else folder.best


def _epochs(
    trainer: Trainer,
    done: int,
    writer: _CheckpointWriter | None,
    validate_every: int,
    callbacks: Callbacks,
    skipped: _Skipped,
) -> None:
    """Train the remaining epochs; the first process has a writer and also validates and writes checkpoints."""
    last: Progress | None = None

    def step(progress: Progress) -> None:
        nonlocal last
        last = progress
        if writer is not None:
            writer.board.step(progress)
        callbacks.step(progress)

    epochs = trainer.config.epochs
    for epoch in range(done + 1, epochs + 1):
        began = time.perf_counter()
        loss = trainer.run_epoch(epoch - 1, step, skipped)
        seconds, count = time.perf_counter() - began, skipped.count()
        if writer is not None and last is not None:
            due = epoch % validate_every == 0 or epoch == epochs
            result = EpochResult(
                epoch=epoch, loss=loss, learning_rate=last.learning_rate, seconds=seconds, skipped=count, metrics=None
            )
            callbacks.epoch(writer.write(result, validate=due))
        barrier()


class _Skipped:
    """Reports each skipped sample once, and counts them over all processes."""

    def __init__(self, report: Callable[[UnreadableSample], None]) -> None:
        self._report = report
        self._samples: set[int] = set()

    def __call__(self, problem: UnreadableSample) -> None:
        if problem.sample not in self._samples:
            self._samples.add(problem.sample)
            self._report(problem)

    def count(self) -> int:
        """Number of skipped samples; must be called in every process."""
        return len(all_gather(self._samples))


@dataclass(frozen=True)
class _CheckpointWriter:
    """Validates and writes checkpoint, history and state after each epoch."""

    trainer: Trainer
    config: RunConfig
    folder: RunFolder
    held_out: DepthDataset | None
    about: dict[str, Any]
    board: _TensorBoardLogger
    results: list[EpochResult]

    def write(self, result: EpochResult, *, validate: bool) -> EpochResult:
        """Write the files of an epoch; returns its result with validation metrics."""
        with self.trainer.averaged_weights():
            training = {**self.about, "settings": asdict(self.config.train), "epoch": result.epoch}
            if self.held_out is not None and validate:
                protocol = self.config.protocol
                metrics = evaluate(self.trainer.network, self.held_out, protocol).mean
                result = replace(result, metrics=metrics)
                measured = {"pictures": len(self.held_out), "protocol": asdict(protocol), **asdict(metrics)}
                training["validation"] = measured
            self.results.append(result)
            is_best = result is best_of(self.results)
            for path in (self.folder.checkpoint(result.epoch), *([self.folder.best] if is_best else [])):
                save_checkpoint(self.trainer.network, path, training=training)
            self.board.epoch(result)
        self.folder.write_history(self.results)
        # Last, so that the state never refers to files that were not written.
        self.folder.write_state({"epochs": result.epoch, "trainer": self.trainer.state()})
        return result


class _TensorBoardLogger:
    """TensorBoard log of a run: scalars, and depth of a few images."""

    def __init__(self, folder: RunFolder, trainer: Trainer, dataset: DepthDataset, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._network = trainer.network
        self._step = done * trainer.steps // trainer.config.epochs
        # Drop events of an interrupted epoch.
        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=self._step + 1)
        indices = sorted({len(dataset) * place // TENSORBOARD_IMAGES for place in range(TENSORBOARD_IMAGES)})
        self._samples = []
        for index in indices:
            with suppress(InputError):  # these images are optional; training reports unreadable samples itself
                self._samples.append(dataset[index])

    def step(self, progress: Progress) -> None:
        self._step = progress.step
        self._writer.add_scalar("train/loss", progress.loss, progress.step)
        self._writer.add_scalar("train/learning_rate", progress.learning_rate, progress.step)

    def epoch(self, result: EpochResult) -> None:
        for name, value in (asdict(result.metrics) if result.metrics else {}).items():
            self._writer.add_scalar(f"validation/{name}", value, self._step)
        predict, limits_m = predictor(self._network), self._network.config.depth_limits_m
        for sample in self._samples:
            depths = (colourise(depth_m, limits_m) for depth_m in (predict(sample.frame), sample.depth_m))
            row = side_by_side([sample.frame, *depths])
            self._writer.add_image(sample.name, row, self._step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
