"""Losses, schedule and training itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")

import torch

from mirrordepth_edge.config import ModelConfig, TrainConfig
from mirrordepth_edge.core.losses import log_error, silog
from mirrordepth_edge.core.network import DepthNetwork, create_network
from mirrordepth_edge.core.trainer import (
    AugmentedSamples,
    Progress,
    evaluate,
    learning_rate_at,
    loss_of,
    normalise_pixels,
    train,
)
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.evaluation import Protocol
from mirrordepth_edge.preprocess import Frame, normalise, resize_frame

METRIC = Protocol(limits_m=(1e-3, 10.0))
QUICK = TrainConfig(epochs=2, batch_size=2, warmup_steps=0, seed=1)


@pytest.fixture(scope="module")
def samples(frames: list[Frame]) -> list[Sample]:
    """Four pictures whose depth can be read off their brightness, with a border of no depth."""
    made = []
    for index, frame in enumerate([*frames, frames[0][::-1]]):
        depth_m = 1 + 4 * frame.mean(axis=2, dtype=np.float32) / 255
        depth_m[:5] = 0
        made.append(Sample(str(index), np.ascontiguousarray(frame), depth_m))
    return made


# --- losses


@pytest.mark.parametrize(
    ("errors", "lam", "expected"),
    [
        ([0.2] * 4, 0.85, 10 * 0.2 * math.sqrt(0.15)),  # a global scale, mostly forgiven
        ([0.2] * 4, 0.0, 2.0),  # nothing forgiven: 10 times the RMS
        ([0.2] * 4, 1.0, 0.0),  # all forgiven
        ([0.3, -0.3], 0.85, 3.0),  # no global scale
        ([0.0, 0.0], 0.85, 0.0),
    ],
)
def test_silog_closed_forms(errors: list[float], lam: float, expected: float) -> None:
    assert silog(torch.tensor(errors), lam).item() == pytest.approx(expected, abs=2e-4)


def test_loss_equals_its_float64_recomputation(tiny_network: DepthNetwork) -> None:
    rng = np.random.default_rng(0)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    truth = rng.uniform(-1, 12, (2, 64, 96)).astype(np.float32)
    config = TrainConfig(silog_lambda=0.5, log_l1_weight=0.3)
    with torch.no_grad():
        delivered = loss_of(tiny_network, images, torch.from_numpy(truth), config).item()
        prediction = tiny_network(images).double().numpy()
    valid = (truth > 1e-3) & (truth < 10)
    g = np.log(prediction[valid] / truth[valid].astype(np.float64))
    expected = 10 * np.sqrt((g**2).mean() - 0.5 * g.mean() ** 2) + 0.3 * np.abs(g).mean()
    assert delivered == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, math.inf])
def test_pixels_without_depth_have_no_part(nothing: float) -> None:
    prediction = torch.tensor([2.0, 0.0, 5.0], requires_grad=True)
    truth = torch.tensor([4.0, nothing, 4.0])
    silog(log_error(prediction, truth, (truth > 0) & (truth < 10))).backward()
    assert torch.isfinite(prediction.grad).all()
    assert (prediction.grad != 0).tolist() == [True, False, True]


def test_gradients_are_finite_with_depth_missing(tiny_vit_config: ModelConfig) -> None:
    network = create_network(tiny_vit_config)
    truth = torch.full((1, 64, 96), 2.0)
    truth[:, :32], truth[:, 32:40], truth[:, 40:48] = 0, math.nan, math.inf
    loss_of(network, torch.randn(1, 3, 64, 96), truth, TrainConfig(log_l1_weight=0.1)).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.trainable().values())


def test_predictions_beyond_the_far_limit_still_learn(tiny_vit_config: ModelConfig) -> None:
    network = create_network(tiny_vit_config)
    torch.nn.init.constant_(network.decoder.head[4].bias, 40.0)  # metres; the limit is 10
    config = TrainConfig(silog_lambda=0.0)
    loss = loss_of(network, torch.zeros(1, 3, 64, 96), torch.full((1, 64, 96), 4.0), config)
    loss.backward()
    assert loss.item() == pytest.approx(10 * math.log(40 / 4), rel=0.05)
    assert network.decoder.head[4].bias.grad.item() > 0.01


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
def test_a_short_run_warms_up_for_a_tenth_of_it_at_most(steps: int) -> None:
    rates = [learning_rate_at(step, steps, TrainConfig()) for step in range(steps)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) <= steps // 10


# --- training


def test_training_batches_are_normalised_as_inference_is(frames: list[Frame], tiny_vit_config: ModelConfig) -> None:
    resized = [resize_frame(frame, (64, 96)) for frame in frames]
    batch = normalise_pixels(torch.from_numpy(np.stack(resized)), tiny_vit_config.preprocess)
    for image, frame in zip(batch, resized, strict=True):
        np.testing.assert_allclose(image.numpy(), normalise(frame, tiny_vit_config.preprocess)[0], atol=1e-6)


def test_training_reduces_the_loss_and_reports_every_step(tiny_vit_config: ModelConfig, samples: list[Sample]) -> None:
    network = create_network(tiny_vit_config)
    config = replace(QUICK, epochs=30, batch_size=4, jitter=0, flip_probability=0, learning_rate=3e-3)
    steps: list[Progress] = []
    before = evaluate(network, samples, METRIC)
    train(network, samples, config, on_step=steps.append)
    assert [progress.step for progress in steps] == list(range(1, 31))
    assert {progress.steps for progress in steps} == {30}
    assert [progress.learning_rate for progress in steps] == [learning_rate_at(s, 30, config) for s in range(30)]
    assert steps[-1].loss < 0.6 * steps[0].loss
    assert evaluate(network, samples, METRIC).abs_rel < 0.6 * before.abs_rel
    assert not network.training


def test_each_step_has_its_own_gradient_clipped(tiny_vit_config: ModelConfig, samples: list[Sample]) -> None:
    def gradient_norms(clip: float) -> list[float]:
        network, norms = create_network(tiny_vit_config), []

        def note(progress: Progress) -> None:
            norms.append(math.hypot(*(p.grad.norm().item() for p in network.trainable().values())))

        # Nothing moves and every batch holds every picture: the gradient must stay what it is.
        still = replace(QUICK, epochs=3, batch_size=4, jitter=0, flip_probability=0)
        still = replace(still, learning_rate=0, final_learning_rate=0, gradient_clip=clip)
        train(network, samples, still, on_step=note)
        return norms

    free = gradient_norms(1e9)
    assert free == pytest.approx([free[0]] * 3, rel=1e-3)
    assert gradient_norms(free[0] / 3) == pytest.approx([free[0] / 3] * 3, rel=1e-3)


def test_training_moves_mirror_and_decoder_and_no_bit_of_the_towers(
    tiny_map_config: ModelConfig, samples: list[Sample]
) -> None:
    network = create_network(tiny_map_config)
    frozen = {name: tensor.clone() for name, tensor in network.clip.state_dict().items()}
    trained = {name: parameter.detach().clone() for name, parameter in network.trainable().items()}
    train(network, samples, replace(QUICK, epochs=1, batch_size=4))
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in network.clip.state_dict().items())
    assert not any(torch.equal(parameter, trained[name]) for name, parameter in network.trainable().items())


def test_the_same_seed_gives_the_same_bits(tiny_vit_config: ModelConfig, samples: list[Sample]) -> None:
    def weights_after(config: TrainConfig) -> torch.Tensor:
        network = create_network(tiny_vit_config)
        train(network, samples, config)
        return torch.cat([parameter.detach().flatten() for parameter in network.trainable().values()])

    first = weights_after(QUICK)
    torch.rand(7)  # whatever else has drawn from torch's generator
    assert torch.equal(weights_after(QUICK), first)
    assert not torch.equal(weights_after(replace(QUICK, seed=2)), first)


def test_views_differ_by_epoch_and_index_and_repeat_by_seed(samples: list[Sample]) -> None:
    data = AugmentedSamples([samples[0]] * 2, (64, 96), QUICK)
    first, other_index = data[0][0], data[1][0]
    data.epoch = 1
    other_epoch = data[0][0]
    again = AugmentedSamples([samples[0]] * 2, (64, 96), QUICK)[0][0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other_index)
    assert not torch.equal(first, other_epoch)


def test_divergence_is_told(tiny_vit_config: ModelConfig, samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="diverged in epoch 2") as caught:
        train(create_network(tiny_vit_config), samples, replace(QUICK, batch_size=4, learning_rate=math.inf))
    assert "learning rate" in caught.value.cure


def test_nothing_to_train_on(tiny_vit_config: ModelConfig) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        train(create_network(tiny_vit_config), [], QUICK)


def test_a_picture_without_any_depth_is_no_divergence(tiny_vit_config: ModelConfig, samples: list[Sample]) -> None:
    blank = samples[0]._replace(depth_m=np.zeros_like(samples[0].depth_m))
    told = ""
    try:
        train(create_network(tiny_vit_config), [blank, *samples], replace(QUICK, batch_size=1))
    except InputError as error:  # to refuse it is as good as to pass over it
        told = error.what
    assert "diverged" not in told


def test_evaluate_is_the_mean_over_pictures(tiny_network: DepthNetwork, samples: list[Sample]) -> None:
    alone = [evaluate(tiny_network, [sample], METRIC).abs_rel for sample in samples]
    assert evaluate(tiny_network, samples, METRIC).abs_rel == pytest.approx(np.mean(alone))
