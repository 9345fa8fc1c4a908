"""Learning rate schedule, training loop, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import torch
from safetensors.torch import load_file

from mirrordepth_edge.config import ModelConfig, TrainConfig
from mirrordepth_edge.data.sample import DepthDataset, Selected
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation.evaluate import Protocol
from mirrordepth_edge.imaging.preprocess import Frame, normalise, resize_frame
from mirrordepth_edge.model.network import DepthNetwork, create_network, normalise_pixels
from mirrordepth_edge.training.trainer import Progress, Trainer, evaluate, learning_rate_at
from mirrordepth_edge.training.views import FreshViews, collate

METRIC = Protocol(limits_m=(1e-3, 10.0))
QUICK = TrainConfig(epochs=2, batch_size=2, warmup_steps=0, seed=1, ema_decay=0)
STILL = replace(QUICK, batch_size=4, jitter=0, flip_probability=0, rotate_deg=0)
"""Every batch holds every picture as it is."""


def trainer_for(network: DepthNetwork, dataset: DepthDataset, config: TrainConfig, **options: Any) -> Trainer:
    return Trainer(network, FreshViews(dataset, network.config.size_hw, config), config, **options)


def train(
    network: DepthNetwork,
    dataset: DepthDataset,
    config: TrainConfig,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> Trainer:
    trainer = trainer_for(network, dataset, config)
    for epoch in range(config.epochs):
        trainer.run_epoch(epoch, on_step)
    return trainer


# --- schedule


def test_learning_rate_at_the_turning_points() -> None:
    config = TrainConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=100)
    rates = [learning_rate_at(step, 2000, config) for step in range(2001)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[49] == pytest.approx(5e-4)
    assert rates[99] == rates[100] == pytest.approx(1e-3)
    assert rates[1050] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[2000] == pytest.approx(1e-5)
    assert (np.diff(rates[:100]) > 0).all()
    assert (np.diff(rates[100:]) < 0).all()


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_warmup_is_at_most_a_tenth_of_the_run(steps: int) -> None:
    rates = [learning_rate_at(step, steps, TrainConfig()) for step in range(steps)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) <= steps // 10


# --- training


def test_training_batches_are_normalised_as_inference_is(frames: list[Frame], tiny_vit_config: ModelConfig) -> None:
    resized = [resize_frame(frame, (64, 96)) for frame in frames]
    batch = normalise_pixels(torch.from_numpy(np.stack(resized)), tiny_vit_config.preprocess)
    for image, frame in zip(batch, resized, strict=True):
        np.testing.assert_allclose(image.numpy(), normalise(frame, tiny_vit_config.preprocess)[0], atol=1e-6)


def test_training_reduces_the_loss_and_reports_every_step(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    network = create_network(tiny_vit_config)
    config = replace(STILL, epochs=30, learning_rate=3e-3)
    steps: list[Progress] = []
    before = evaluate(network, samples, METRIC).mean
    train(network, samples, config, on_step=steps.append)
    assert [progress.step for progress in steps] == list(range(1, 31))
    assert {progress.steps for progress in steps} == {30}
    assert [progress.learning_rate for progress in steps] == [learning_rate_at(s, 30, config) for s in range(30)]
    assert steps[-1].loss < 0.6 * steps[0].loss
    assert evaluate(network, samples, METRIC).mean.abs_rel < 0.6 * before.abs_rel
    assert not network.training


def test_each_step_has_its_own_gradient_clipped(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    def gradient_norms(clip: float) -> list[float]:
        network, norms = create_network(tiny_vit_config), []

        def note(progress: Progress) -> None:
            norms.append(math.hypot(*(p.grad.norm().item() for p in network.trainable().values())))

        # Nothing moves either: the gradient must stay what it is.
        still = replace(STILL, epochs=3, learning_rate=0, final_learning_rate=0, gradient_clip=clip)
        train(network, samples, still, on_step=note)
        return norms

    free = gradient_norms(1e9)
    assert free == pytest.approx([free[0]] * 3, rel=1e-3)
    assert gradient_norms(free[0] / 3) == pytest.approx([free[0] / 3] * 3, rel=1e-3)


def test_training_changes_mirror_and_decoder_only(tiny_map_config: ModelConfig, samples: DepthDataset) -> None:
    network = create_network(tiny_map_config)
    frozen = {name: tensor.clone() for name, tensor in network.clip.state_dict().items()}
    trained = {name: parameter.detach().clone() for name, parameter in network.trainable().items()}
    train(network, samples, replace(QUICK, epochs=1, batch_size=4))
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in network.clip.state_dict().items())
    assert not any(torch.equal(parameter, trained[name]) for name, parameter in network.trainable().items())


def test_the_same_seed_gives_the_same_bits(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    def weights_after(config: TrainConfig) -> torch.Tensor:
        network = create_network(tiny_vit_config)
        train(network, samples, config)
        return torch.cat([parameter.detach().flatten() for parameter in network.trainable().values()])

    first = weights_after(QUICK)
    torch.rand(7)  # whatever else has drawn from torch's generator
    assert torch.equal(weights_after(QUICK), first)
    assert not torch.equal(weights_after(replace(QUICK, seed=2)), first)


def test_divergence_is_reported_with_its_batch(
    tiny_vit_config: ModelConfig, samples: DepthDataset, tmp_path: Path
) -> None:
    config = replace(QUICK, batch_size=4, learning_rate=math.inf)
    bad = tmp_path / "bad.safetensors"
    trainer = trainer_for(create_network(tiny_vit_config), samples, config, bad_batch=bad)
    trainer.run_epoch(0)
    with pytest.raises(InputError, match="diverged in epoch 2") as caught:
        trainer.run_epoch(1)
    assert "learning rate" in caught.value.cure
    assert str(bad) in caught.value.why
    kept = load_file(bad)
    assert sorted(kept["samples"].tolist()) == [0, 1, 2, 3]
    views = FreshViews(samples, tiny_vit_config.size_hw, config)
    again = collate([views[1, index] for index in kept["samples"].tolist()])
    assert torch.equal(kept["input.0"], again.inputs[0])
    assert torch.equal(kept["truth_m"], again.truth_m)


def test_nothing_to_train_on(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        trainer_for(create_network(tiny_vit_config), Selected(of=samples, indices=()), QUICK)


def test_batch_without_depth_is_not_reported_as_divergence(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    class Blank(Selected):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)._replace(depth_m=np.zeros((61, 203), np.float32))

    with pytest.raises(InputError, match="no usable depth"):
        train(create_network(tiny_vit_config), Blank(of=samples, indices=(2,)), QUICK)


def test_gradient_accumulation_equals_one_step(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    """Holds for a mean over pixels if all parts have the same number of valid pixels."""
    same = Selected(of=samples, indices=(0, 0, 0, 0))
    config = replace(STILL, epochs=3, learning_rate=1e-2)

    def losses(accumulate: int) -> list[float]:
        history: list[float] = []
        network = create_network(tiny_vit_config)
        train(network, same, replace(config, accumulate=accumulate), lambda progress: history.append(progress.loss))
        return history

    assert losses(4) == pytest.approx(losses(1), rel=1e-4)


def test_moving_average_of_weights(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    network, passed = create_network(tiny_vit_config), []

    def note(progress: Progress) -> None:
        passed.append(network.mirror.embeddings.detach().double().clone())

    config = replace(STILL, epochs=6, ema_decay=0.3)
    trainer = train(network, samples, config, note)
    mean = passed[0]
    for count, weights in enumerate(passed[1:], 1):
        decay = min(0.3, (1 + count) / (10 + count))
        mean = decay * mean + (1 - decay) * weights
    own = network.mirror.embeddings.detach().clone()
    with trainer.averaged_weights():
        torch.testing.assert_close(network.mirror.embeddings.detach().double(), mean, rtol=1e-5, atol=1e-7)
        assert not torch.equal(network.mirror.embeddings, own)
    assert torch.equal(network.mirror.embeddings, own)


def test_restored_state_continues_identically(
    tiny_vit_config: ModelConfig, samples: DepthDataset, tmp_path: Path
) -> None:
    config = replace(QUICK, epochs=4, ema_decay=0.9, dropout=0.2)

    def weights(trainer: Trainer) -> torch.Tensor:
        with trainer.averaged_weights():
            return torch.cat([p.detach().flatten().clone() for p in trainer.parameters])

    whole = train(create_network(tiny_vit_config), samples, config)
    first = trainer_for(create_network(tiny_vit_config), samples, config)
    for epoch in (0, 1):
        first.run_epoch(epoch)
    torch.save(first.state(), tmp_path / "state.pt")
    second = trainer_for(create_network(tiny_vit_config, seed=9), samples, config)
    second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    for epoch in (2, 3):
        second.run_epoch(epoch)
    assert torch.equal(weights(second), weights(whole))


@pytest.mark.parametrize("kind", ["vit", "map"])
def test_dropout_drops_whole_channels_in_training_only(
    kind: str, tiny_vit_config: ModelConfig, tiny_map_config: ModelConfig
) -> None:
    network = create_network({"vit": tiny_vit_config, "map": tiny_map_config}[kind]).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taps = network.tower(images)
        before = network.decode(taps, (64, 96))
        network.decoder.set_dropout(0.5)
        assert torch.equal(network.decode(taps, (64, 96)), before)
        network.train()
        assert not torch.equal(network.decode(taps, (64, 96)), network.decode(taps, (64, 96)))
        ones = torch.ones(1, 40, 6, 4) if kind == "map" else torch.ones(1, 24, 40)
        dropped = network.decoder._drop_channels(ones)
    channels = dropped.flatten(2)[0] if kind == "map" else dropped[0].T
    assert {tuple(channel.unique().tolist()) for channel in channels} == {(0.0,), (2.0,)}


def test_optimiser_has_no_frozen_parameters(tiny_vit_config: ModelConfig, samples: DepthDataset) -> None:
    trainer = train(create_network(tiny_vit_config), samples, QUICK)
    (group,) = trainer.optimiser.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in trainer.network.trainable().values()}
    frozen = {*trainer.network.clip.parameters()} - {*trainer.network.trainable().values()}
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    trainer.network.train()
    assert not any(module.training for module in trainer.network.clip.modules())


def test_evaluate_is_the_mean_over_pictures(tiny_network: DepthNetwork, samples: DepthDataset) -> None:
    alone = [evaluate(tiny_network, [sample], METRIC).mean.abs_rel for sample in samples]
    assert evaluate(tiny_network, samples, METRIC).mean.abs_rel == pytest.approx(np.mean(alone))
