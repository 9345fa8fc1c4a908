"""Training of mirror and decoder on pictures with measured depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mirrordepth_edge import evaluation
from mirrordepth_edge.config import SizeHW, TrainConfig
from mirrordepth_edge.core.clip import Taps
from mirrordepth_edge.core.losses import log_error, silog
from mirrordepth_edge.core.network import DepthNetwork, normalise_pixels
from mirrordepth_edge.data.augment import augment
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation import Protocol
from mirrordepth_edge.metrics import Depth, DepthMetrics
from mirrordepth_edge.postprocess import resize_depth_to
from mirrordepth_edge.preprocess import Frame, Preprocessor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands after a step."""

    epoch: int
    step: int
    steps: int
    loss: float
    learning_rate: float


class AugmentedSamples(Dataset):
    """Samples in memory, augmented anew each epoch; the same seed gives the same views."""

    def __init__(self, samples: Sequence[Sample], size_hw: SizeHW, config: TrainConfig) -> None:
        self.samples = samples
        self.size_hw = size_hw
        self.config = config
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.config.seed, self.epoch, index))
        sample = self.samples[index]
        frame, depth_m = augment(sample.frame, sample.depth_m, self.size_hw, self.config, rng)
        return torch.from_numpy(frame), torch.from_numpy(depth_m)


def learning_rate_at(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a half cosine from `learning_rate` down to `final_learning_rate`."""
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    turn = math.cos(math.pi * (step - warmup) / max(1, steps - warmup))
    return config.final_learning_rate + 0.5 * (config.learning_rate - config.final_learning_rate) * (1 + turn)


def loss_of(network: DepthNetwork, images: Tensor, truth_m: Tensor, config: TrainConfig) -> Tensor:
    """SILog plus, if asked for, a plain log-L1 that pins the scale.

    Raises:
        InputError: no pixel of the batch has a depth inside the model's limits.
    """
    near, far = network.config.depth_limits_m
    valid = (truth_m > near) & (truth_m < far)
    if not valid.any():
        raise InputError(
            "A batch of pictures has no usable depth.",
            f"No pixel lies between {near:g} and {far:g} m.",
            "Check the depth scale (--units-per-metre) and take pictures without depth away.",
        )
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bf16):
        taps = network.tower(images)
    taps = Taps([feature.float() for feature in taps.features], taps.prefix)
    depth_m = network.decode(taps, network.config.size_hw)
    g = log_error(depth_m.clamp(min=near), truth_m, valid)
    return silog(g, config.silog_lambda) + config.log_l1_weight * g.abs().mean()


def train(
    network: DepthNetwork,
    samples: Sequence[Sample],
    config: TrainConfig,
    on_step: Callable[[Progress], None] = lambda progress: None,
    workers: int = 0,
) -> None:
    """Fit mirror and decoder to `samples`, in place.

    Args:
        samples: pictures and depth, all in memory.
        on_step: called after every optimiser step.
        workers: processes that augment beside the training one.

    Raises:
        InputError: no samples, or the loss is no longer finite.
    """
    if not samples:
        raise InputError("There is nothing to train on.", "The data set is empty.", "Check --root.")
    torch.manual_seed(config.seed)
    data = AugmentedSamples(samples, network.config.size_hw, config)
    loader = DataLoader(
        data,
        batch_size=min(config.batch_size, len(samples)),
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        generator=torch.Generator().manual_seed(config.seed),
    )
    parameters = list(network.trainable().values())
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    steps, step = len(loader) * config.epochs, 0
    network.train()
    for epoch in range(config.epochs):
        data.epoch = epoch
        for frames, truth_m in loader:
            rate = learning_rate_at(step, steps, config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = loss_of(network, normalise_pixels(frames, network.config.preprocess), truth_m, config)
            if not torch.isfinite(loss):
                raise InputError(
                    f"Training diverged in epoch {epoch + 1}: the loss is {loss.item()}.",
                    "The learning rate is too high or the depth has values out of all proportion.",
                    "Lower the learning rate, or check the depth scale (--units-per-metre).",
                )
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            optimiser.step()
            step += 1
            on_step(Progress(epoch=epoch, step=step, steps=steps, loss=loss.item(), learning_rate=rate))
    network.eval()


@torch.no_grad()
def evaluate(network: DepthNetwork, samples: Sequence[Sample], protocol: Protocol) -> DepthMetrics:
    """Depth errors of `network` on `samples`, predictions resized to the picture's size."""
    network.eval()
    preprocess = Preprocessor(network.config.preprocess, io="float")

    def predict(frame: Frame) -> Depth:
        depth_m = network(torch.from_numpy(preprocess(frame)))[0].numpy()
        return resize_depth_to(depth_m, (frame.shape[0], frame.shape[1]))

    return evaluation.evaluate(predict, samples, protocol).mean
