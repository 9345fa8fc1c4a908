"""Losses on metric depth. Predictions and truth in metres, truth <= 0 or not finite is no value."""

from __future__ import annotations

import torch
from torch import Tensor


def log_error(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """`ln p - ln y` on valid pixels, shape `[n]`. Masked before the logarithm, never after."""
    return torch.log(prediction_m[valid]) - torch.log(truth_m[valid])


def silog(g: Tensor, lam: float = 0.85) -> Tensor:
    """Scale-invariant log loss `10 * sqrt(mean(g^2) - lam * mean(g)^2)` (Eigen 2014; form of BTS).

    Args:
        g: log errors, shape `[n]`.
        lam: share of a global scale error that is forgiven.
    """
    return 10.0 * torch.sqrt(torch.clamp(g.square().mean() - lam * g.mean().square(), min=1e-12))
