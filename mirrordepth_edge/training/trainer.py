"""Training loop of mirror and decoder on images with measured depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from mirrordepth_edge.config import TrainConfig
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation import evaluate as evaluation
from mirrordepth_edge.evaluation.evaluate import Evaluation, Protocol
from mirrordepth_edge.evaluation.metrics import Depth
from mirrordepth_edge.imaging.postprocess import resize_depth_to
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.model.clip import Taps
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.support.files import atomic_write
from mirrordepth_edge.training.distributed import rank, world_size
from mirrordepth_edge.training.features import CachedViews, tower_features
from mirrordepth_edge.training.losses import depth_loss, error_sums, log_error, sum_over_processes
from mirrordepth_edge.training.views import (
    Batch,
    EpochBatchSampler,
    FreshViews,
    UnreadableSample,
    collate,
    limit_worker_threads,
)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of training after an optimiser step."""

    epoch: int
    step: int
    """Counted over all epochs, from 1."""
    steps: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Compute resources of a training; they do not change its result."""

    device: str = "cpu"
    workers: int = 0
    """Number of data loader processes."""
    compile: bool = False
    """Apply `torch.compile` to image tower and decoder; takes minutes, pays off on a GPU."""


class Learner(nn.Module):
    """The trainable part as one module: image features to depth, through mirror, frozen text tower and decoder."""

    def __init__(self, network: DepthNetwork) -> None:
        super().__init__()
        self.mirror, self.text, self.decoder = network.mirror, network.text, network.decoder
        self.size_hw = network.config.size_hw

    def forward(self, features: list[Tensor], prefix: int) -> Tensor:
        return self.decoder(Taps(features, prefix), self.text(self.mirror()), self.size_hw)


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Use TF32 for FP32 matrix products inside the block: for training on GPUs; evaluation stays FP32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def learning_rate_at(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of a step: linear warm-up, then cosine decay to `final_learning_rate`."""
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    cosine = math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
    return config.final_learning_rate + 0.5 * (config.learning_rate - config.final_learning_rate) * (1 + cosine)


class Trainer:
    """Trains mirror and decoder of a network, in place.

    The towers stay frozen. With `torchrun`, each process computes its part of every batch, and only gradients of mirror
    and decoder are exchanged.

    Args:
        network: the network; it is moved to the device.
        views: training views.
        config: hyperparameters.
        resources: compute resources.
        bad_batch: file for a batch that makes the loss not finite; None to write none.

    Raises:
        InputError: there are no views.
    """

    def __init__(
        self,
        network: DepthNetwork,
        views: FreshViews | CachedViews,
        config: TrainConfig,
        resources: Resources = Resources(),
        bad_batch: Path | None = None,
    ) -> None:
        if not len(views):
            raise InputError("There is nothing to train on.", "The data set is empty.", "Check --root.")
        self.network = network.to(resources.device)
        self.views, self.config, self.bad_batch = views, config, bad_batch
        self.device = torch.device(resources.device)
        network.decoder.set_dropout(config.dropout)
        self.parameters = list(network.trainable().values())
        self.optimiser = torch.optim.AdamW(self.parameters, config.learning_rate, weight_decay=config.weight_decay)
        self.average: AveragedModel | None = None
        if config.ema_decay:
            self.average = AveragedModel(self._trainable_parts(), multi_avg_fn=self._update_average)
        learner: nn.Module = Learner(network)
        # The frozen towers stay outside: only the learner's gradients are exchanged.
        self._parallel = DistributedDataParallel(learner, broadcast_buffers=False) if world_size() > 1 else None
        self._learner: Callable[..., Tensor] = self._parallel or learner
        if resources.compile:
            self._learner = torch.compile(self._learner)
            network.tower.compile()
        self._sampler = EpochBatchSampler(len(views), config, rank(), world_size())
        self._loader = DataLoader(
            views,
            batch_sampler=self._sampler,
            num_workers=resources.workers,
            collate_fn=collate,
            worker_init_fn=limit_worker_threads,
            # Each new worker process imports PyTorch, which takes seconds.
            persistent_workers=resources.workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the whole training."""
        return self._sampler.steps * self.config.epochs

    def run_epoch(
        self,
        epoch: int,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_problem: Callable[[UnreadableSample], None] = lambda problem: None,
    ) -> float:
        """Train for one epoch, counted from 0; epochs must be run in order.

        Args:
            epoch: number of the epoch.
            on_step: called after every optimiser step.
            on_problem: called for every sample that is skipped.

        Returns:
            Mean loss.

        Raises:
            InputError: a sample cannot be read, a batch has no depth, or the loss is not finite.
        """
        self._sampler.epoch = epoch
        self.network.train()
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with _tensor_cores() if devices else nullcontext(), torch.random.fork_rng(devices):
            # Dropout depends only on seed, epoch and rank, so a resumed run gives the same numbers.
            torch.manual_seed(self.config.seed + epoch * world_size() + rank())
            mean = self._steps(epoch, on_step, on_problem)
        self.network.eval()
        return mean

    def _steps(
        self, epoch: int, on_step: Callable[[Progress], None], on_problem: Callable[[UnreadableSample], None]
    ) -> float:
        batches, losses = iter(self._loader), []
        for step in range(epoch * self._sampler.steps, (epoch + 1) * self._sampler.steps):
            learning_rate = learning_rate_at(step, self.steps, self.config)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate
            self.optimiser.zero_grad()
            parts = []
            for last in [False] * (self.config.accumulate - 1) + [True]:
                batch = next(batches)
                for problem in batch.problems:
                    on_problem(problem)
                # Gradients are exchanged once per step, with its last part.
                with nullcontext() if last or self._parallel is None else self._parallel.no_sync():
                    parts.append(self._backward(batch, epoch))
            # Checked before the step: one bad step would spoil weights and optimiser state.
            if not torch.isfinite(nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)):
                self._raise_diverged(batch, epoch, "the gradient is not finite")
            self.optimiser.step()
            if self.average is not None:
                self.average.update_parameters(self._trainable_parts())
            losses.append(sum(parts) / len(parts))
            on_step(
                Progress(epoch=epoch, step=step + 1, steps=self.steps, loss=losses[-1], learning_rate=learning_rate)
            )
        return sum(losses) / len(losses)

    def loss(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch, including the parts of the other processes.

        Raises:
            InputError: no pixel has a depth inside the model's limits.
        """
        if isinstance(self.views, CachedViews):
            features = [tap.to(self.device, non_blocking=True).float() for tap in batch.inputs]
            taps = Taps(features, self.views.info.prefix)
        else:
            taps = tower_features(self.network, batch.inputs[0], self.config)
        truth_m = batch.truth_m.to(self.device, non_blocking=True).float()
        near, far = self.network.config.depth_limits_m
        valid = (truth_m > near) & (truth_m < far)
        # The logarithm in the loss needs positive depth.
        depth_m = self._learner(taps.features, taps.prefix).clamp(min=near)
        error = log_error(depth_m, truth_m, valid)
        sums = sum_over_processes(error_sums(error, valid, edges=self.config.edge_weight > 0))
        if not sums[0]:
            raise InputError(
                "A batch of images has no usable depth.",
                f"No pixel of the samples {', '.join(map(str, batch.samples))} lies between {near:g} and {far:g} m.",
                "Check the depth scale (--units-per-metre) and remove images without depth: mde data check ROOT",
            )
        return depth_loss(sums, self.config)

    def state(self) -> dict[str, Any]:
        """State from which training can be resumed to the same numbers."""
        return {
            "weights": {name: p.detach() for name, p in self.network.trainable().items()},
            "average": None if self.average is None else self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a `state`."""
        self._set_weights(state["weights"][name] for name in self.network.trainable())
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Use the exponential moving average of the weights inside the block."""
        if self.average is None:
            yield
            return
        current = [parameter.detach().clone() for parameter in self.parameters]
        self._set_weights(self.average.module.parameters())
        try:
            yield
        finally:
            self._set_weights(current)

    @torch.no_grad()
    def _set_weights(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def _trainable_parts(self) -> nn.Module:
        return nn.ModuleList([self.network.mirror, self.network.decoder])

    def _update_average(self, means: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        # The decay grows with the number of steps, so that the random initial weights are forgotten soon.
        steps = int(count)
        decay = min(self.config.ema_decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(means), list(weights), 1 - decay)

    def _backward(self, batch: Batch, epoch: int) -> float:
        """Accumulate the gradient of a part of a batch and return its loss."""
        if not batch.inputs:
            raise batch.unreadable()
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            self._raise_diverged(batch, epoch, f"the loss is {loss.item()}")
        # DistributedDataParallel averages gradients, but the loss already covers all processes.
        (loss * world_size() / self.config.accumulate).backward()
        return loss.item()

    def _raise_diverged(self, batch: Batch, epoch: int, symptom: str) -> NoReturn:
        saved = ""
        if self.bad_batch is not None:
            tensors = {f"input.{place}": tensor.contiguous() for place, tensor in enumerate(batch.inputs)}
            tensors |= {"truth_m": batch.truth_m.contiguous(), "samples": torch.tensor(batch.samples)}
            with atomic_write(self.bad_batch) as temporary:
                temporary.write_bytes(save(tensors))
            saved = f" The batch was written to {self.bad_batch}."
        raise InputError(
            f"Training diverged in epoch {epoch + 1}: {symptom}.",
            f"The learning rate is too high, or depth has outliers.{saved}",
            "Lower the learning rate, or check the data: mde data check ROOT",
        )


def predictor(network: DepthNetwork) -> Callable[[Frame], Depth]:
    """Return a function from a frame, uint8 RGB `[H, W, 3]`, to its depth, float32 `[H, W]`, metres."""
    network.eval()
    device = next(network.parameters()).device
    preprocess = Preprocessor(network.config.preprocess, io="float")

    @torch.no_grad()
    def predict(frame: Frame) -> Depth:
        depth_m = network(torch.from_numpy(preprocess(frame)).to(device))[0].cpu().numpy()
        return resize_depth_to(depth_m, (frame.shape[0], frame.shape[1]))

    return predict


def evaluate(network: DepthNetwork, dataset: Iterable[Sample], protocol: Protocol) -> Evaluation:
    """Evaluate a network on a data set; predictions are resized to the size of the images."""
    return evaluation.evaluate(predictor(network), dataset, protocol)
