"""Training of mirror and decoder on pictures with measured depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from mirrordepth_edge.training.views import Batch, EpochBatchSampler, FreshViews, Problem, collate, limit_worker_threads


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands after a step."""

    epoch: int
    step: int
    """Of all epochs together, from 1."""
    steps: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a training may use; nothing here is meant to change its numbers."""

    device: str = "cpu"
    workers: int = 0
    """Processes that read and augment beside the training one."""
    compile: bool = False
    """Let `torch.compile` fuse tower and decoder: worth its minutes on a GPU."""


class Learner(nn.Module):
    """All that learns, with the frozen text tower between its two parts: tower features to depth."""

    def __init__(self, network: DepthNetwork) -> None:
        super().__init__()
        self.mirror, self.text, self.decoder = network.mirror, network.text, network.decoder
        self.size_hw = network.config.size_hw

    def forward(self, features: list[Tensor], prefix: int) -> Tensor:
        return self.decoder(Taps(features, prefix), self.text(self.mirror()), self.size_hw)


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """FP32 products in TF32 inside the block: for training on GPUs only, evaluation stays FP32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def learning_rate_at(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a half cosine from `learning_rate` down to `final_learning_rate`."""
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    turn = math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
    return config.final_learning_rate + 0.5 * (config.learning_rate - config.final_learning_rate) * (1 + turn)


class Trainer:
    """Fits a network's mirror and decoder to views, in place.

    The towers stay as they are: in eval mode, without gradients, unknown to the optimiser. Started
    by `torchrun`, each process takes its share of every batch and only the gradients of mirror and
    decoder travel.

    Args:
        network: what learns; it is moved to the device.
        views: what it learns from.
        config: how.
        resources: what it may use for it.
        bad_batch: where the batch goes that made the loss not finite.

    Raises:
        InputError: there is nothing to train on.
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
            self.average = AveragedModel(self._learning_parts(), multi_avg_fn=self._average_in)
        learner: nn.Module = Learner(network)
        self._parallel = DistributedDataParallel(learner, broadcast_buffers=False) if world_size() > 1 else None
        self._learner: Callable[..., Tensor] = self._parallel or learner
        if resources.compile:
            self._learner = torch.compile(self._learner)
            network.tower.compile()
        self._order = EpochBatchSampler(len(views), config, rank(), world_size())
        self._loader = DataLoader(
            views,
            batch_sampler=self._order,
            num_workers=resources.workers,
            collate_fn=collate,
            worker_init_fn=limit_worker_threads,
            persistent_workers=resources.workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self._order.steps * self.config.epochs

    def run_epoch(
        self,
        epoch: int,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_problem: Callable[[Problem], None] = lambda problem: None,
    ) -> float:
        """Train for one epoch, counted from 0; epochs are taken in order.

        Args:
            on_step: called after every optimiser step.
            on_problem: called for every sample that was skipped.

        Returns:
            Mean loss.

        Raises:
            InputError: a sample cannot be read, a batch has no depth, or the loss is not finite.
        """
        self._order.epoch = epoch
        self.network.train()
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with _tensor_cores() if devices else nullcontext(), torch.random.fork_rng(devices):
            # What is dropped depends on the epoch alone, whether or not the run was taken up again.
            torch.manual_seed(self.config.seed + epoch * world_size() + rank())
            mean = self._steps(epoch, on_step, on_problem)
        self.network.eval()
        return mean

    def _steps(self, epoch: int, on_step: Callable[[Progress], None], on_problem: Callable[[Problem], None]) -> float:
        batches, losses = iter(self._loader), []
        for step in range(epoch * self._order.steps, (epoch + 1) * self._order.steps):
            learning_rate = learning_rate_at(step, self.steps, self.config)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate
            self.optimiser.zero_grad()
            parts = []
            for last in [False] * (self.config.accumulate - 1) + [True]:
                batch = next(batches)
                for problem in batch.problems:
                    on_problem(problem)
                with nullcontext() if last or self._parallel is None else self._parallel.no_sync():
                    parts.append(self._backward(batch, epoch))
            if not torch.isfinite(nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)):
                self._stop(batch, epoch, "the gradient is not finite")
            self.optimiser.step()
            if self.average is not None:
                self.average.update_parameters(self._learning_parts())
            losses.append(sum(parts) / len(parts))
            on_step(
                Progress(epoch=epoch, step=step + 1, steps=self.steps, loss=losses[-1], learning_rate=learning_rate)
            )
        return sum(losses) / len(losses)

    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch, over all processes' shares of it.

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
        depth_m = self._learner(taps.features, taps.prefix).clamp(min=near)
        error = log_error(depth_m, truth_m, valid)
        sums = sum_over_processes(error_sums(error, valid, edges=self.config.edge_weight > 0))
        if not sums[0]:
            raise InputError(
                "A batch of pictures has no usable depth.",
                f"No pixel of samples {', '.join(map(str, batch.samples))} lies between {near:g} and {far:g} m.",
                "Check the depth scale (--units-per-metre) and take pictures without depth away: mde data check ROOT",
            )
        return depth_loss(sums, self.config)

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on as if there had been no break."""
        return {
            "weights": {name: p.detach() for name, p in self.network.trainable().items()},
            "average": None if self.average is None else self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        with torch.no_grad():
            for name, parameter in self.network.trainable().items():
                parameter.copy_(state["weights"][name])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The network with the running mean of its weights inside the block; as it was outside."""
        if self.average is None:
            yield
            return
        kept = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average.module.parameters(), strict=True):
                parameter.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, own in zip(self.parameters, kept, strict=True):
                    parameter.copy_(own)

    def _learning_parts(self) -> nn.Module:
        return nn.ModuleList([self.network.mirror, self.network.decoder])

    def _average_in(self, means: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        # Early weights are soon forgotten: the mean reaches back over a tenth of the steps at most.
        steps = int(count)
        decay = min(self.config.ema_decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(means), list(weights), 1 - decay)

    def _backward(self, batch: Batch, epoch: int) -> float:
        """Add the gradient of a part of a batch; its loss."""
        if not batch.inputs:
            raise batch.unreadable()
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            self._stop(batch, epoch, f"the loss is {loss.item()}")
        (loss * world_size() / self.config.accumulate).backward()
        return loss.item()

    def _stop(self, batch: Batch, epoch: int, how: str) -> None:
        kept = ""
        if self.bad_batch is not None:
            tensors = {f"input.{place}": tensor.contiguous() for place, tensor in enumerate(batch.inputs)}
            tensors |= {"truth_m": batch.truth_m.contiguous(), "samples": torch.tensor(batch.samples)}
            with atomic_write(self.bad_batch) as temporary:
                temporary.write_bytes(save(tensors))
            kept = f" The batch that did it is in {self.bad_batch}."
        raise InputError(
            f"Training diverged in epoch {epoch + 1}: {how}.",
            f"The learning rate is too high or the depth has values out of all proportion.{kept}",
            "Lower the learning rate, or look at the data: mde data check ROOT",
        )


def predictor(network: DepthNetwork) -> Callable[[Frame], Depth]:
    """A function from frames, uint8 RGB `[H, W, 3]`, to metres at the frame's size, float32 `[H, W]`."""
    network.eval()
    device = next(network.parameters()).device
    preprocess = Preprocessor(network.config.preprocess, io="float")

    @torch.no_grad()
    def predict(frame: Frame) -> Depth:
        depth_m = network(torch.from_numpy(preprocess(frame)).to(device))[0].cpu().numpy()
        return resize_depth_to(depth_m, (frame.shape[0], frame.shape[1]))

    return predict


def evaluate(network: DepthNetwork, dataset: Iterable[Sample], protocol: Protocol) -> Evaluation:
    """Depth errors of `network`, predictions resized to the picture's size."""
    return evaluation.evaluate(predictor(network), dataset, protocol)
