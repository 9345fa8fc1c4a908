"""Losses against closed forms and a float64 implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from mirrordepth_edge.config import TrainConfig
from mirrordepth_edge.training.losses import depth_loss, error_sums, log_error

PLAIN = TrainConfig(log_l1_weight=0, edge_weight=0)


def maps(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[None, None]


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
    error = maps(errors)
    sums = error_sums(error, torch.ones_like(error, dtype=torch.bool))
    loss = depth_loss(sums, TrainConfig(silog_lambda=lam, log_l1_weight=0))
    assert loss.item() == pytest.approx(expected, abs=3e-3)


def test_the_loss_equals_its_float64_recomputation() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.uniform(-1, 12, (2, 33, 47)), rng.uniform(0.1, 12, (2, 33, 47))
    valid = (truth > 1e-3) & (truth < 10)
    config = TrainConfig(silog_lambda=0.5, log_l1_weight=0.3, edge_weight=0.7)
    tensors = [torch.from_numpy(a.astype(np.float32)) for a in (prediction, truth)]
    error = log_error(*tensors, torch.from_numpy(valid))
    delivered = depth_loss(error_sums(error, torch.from_numpy(valid), edges=True), config).item()

    g = np.full(truth.shape, np.nan)
    g[valid] = np.log(prediction[valid] / truth[valid])
    differences = []
    for step in (1, 2, 4, 8):
        coarse = g[:, ::step, ::step]
        differences += [np.diff(coarse, axis=1).ravel(), np.diff(coarse, axis=2).ravel()]
    expected = 10 * np.sqrt(np.nanmean(g**2) - 0.5 * np.nanmean(g) ** 2) + 0.3 * np.nanmean(np.abs(g))
    expected += 0.7 * np.nanmean(np.abs(np.concatenate(differences)))
    assert delivered == pytest.approx(expected, rel=1e-5)


def test_edge_loss_of_a_constant_and_of_a_ramp() -> None:
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    flat = error_sums(torch.full((1, 32, 32), 0.4), valid, edges=True)
    assert flat[5].item() == 0
    ramp = torch.arange(32.0).expand(1, 32, 32) * 0.01
    one_scale = error_sums(ramp, valid, edges=True)
    # Along columns the step doubles from scale to scale, along rows there is none.
    expected = sum(0.01 * step * (32 // step) * (32 // step - 1) for step in (1, 2, 4, 8))
    assert one_scale[5].item() == pytest.approx(expected, rel=1e-5)


def test_sums_are_additive_over_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(4, 16, 16, generator=generator)
    valid = torch.rand(4, 16, 16, generator=generator) > 0.3
    error = error * valid
    parts = sum(error_sums(error[i : i + 1], valid[i : i + 1], edges=True) for i in range(4))
    torch.testing.assert_close(parts, error_sums(error, valid, edges=True))


@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, math.inf])
def test_pixels_without_depth_are_ignored(nothing: float) -> None:
    prediction = torch.tensor([[[2.0, 0.0, 5.0]]], requires_grad=True)
    truth = torch.tensor([[[4.0, nothing, 4.0]]])
    valid = (truth > 0) & (truth < 10)
    depth_loss(error_sums(log_error(prediction, truth, valid), valid, edges=True), PLAIN).backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert (prediction.grad[0, 0] != 0).tolist() == [True, False, True]
