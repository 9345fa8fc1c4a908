"""Losses on metric depth. Predictions and truth are in metres; truth that is <= 0 or not finite is no value.

Every loss is a function of sums over valid pixels. Sums are added over processes, so distributed training computes the
same loss as one process with the whole batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mirrordepth_edge.config import TrainConfig

EDGE_SCALES = 4


def log_error(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """Log error `ln p - ln y`, zero where not valid; same shape as the inputs.

    Args:
        prediction_m, truth_m: `[B, H, W]`, metres.
        valid: bool `[B, H, W]`.
    """
    # Masked before the logarithm: masking afterwards would leave NaN in the gradient.
    one = torch.ones((), device=prediction_m.device)
    return torch.log(torch.where(valid, prediction_m, one)) - torch.log(torch.where(valid, truth_m, one))


def error_sums(error: Tensor, valid: Tensor, *, edges: bool = False) -> Tensor:
    """Sums from which the losses are computed: n, sum g, sum g^2, sum |g|, pairs, sum |g - g'| over pairs.

    Args:
        error: log errors g, `[B, H, W]`, zero where not valid.
        valid: bool `[B, H, W]`.
        edges: compute the last two, over neighbouring valid pixels at `EDGE_SCALES` scales (gradient matching of
            MegaDepth, arXiv 1804.00607); else they are 0.

    Returns:
        float32 `[6]`.
    """
    parts = [valid.sum(), error.sum(), error.square().sum(), error.abs().sum()]
    pairs, differences = error.new_zeros(()), error.new_zeros(())
    for scale in range(EDGE_SCALES if edges else 0):
        step = 2**scale
        g, ok = error[:, ::step, ::step], valid[:, ::step, ::step]
        for a, b, both in (
            (g[:, 1:], g[:, :-1], ok[:, 1:] & ok[:, :-1]),
            (g[:, :, 1:], g[:, :, :-1], ok[:, :, 1:] & ok[:, :, :-1]),
        ):
            pairs = pairs + both.sum()
            differences = differences + ((a - b).abs() * both).sum()
    return torch.stack([part.float() for part in (*parts, pairs, differences)])


def sum_over_processes(sums: Tensor) -> Tensor:
    """Add the sums of all processes; the gradient is that of this process's summands only.

    DistributedDataParallel averages gradients, so the loss must be multiplied by the number of processes.
    """
    if not dist.is_initialized():
        return sums
    total = sums.detach().clone()
    dist.all_reduce(total)
    return sums + (total - sums.detach())


def depth_loss(sums: Tensor, config: TrainConfig) -> Tensor:
    """SILog loss plus the L1 and edge terms of `config`.

    Args:
        sums: result of `error_sums`, float32 `[6]`.
        config: weights of the terms.
    """
    n, g, g_squared, g_absolute, pairs, differences = sums
    loss = silog(g_squared / n, g / n, config.silog_lambda) + config.log_l1_weight * g_absolute / n
    return loss + config.edge_weight * differences / pairs.clamp(min=1)


def silog(mean_of_squares: Tensor, mean: Tensor, lam: float = 0.85) -> Tensor:
    """Scale-invariant log loss `10 * sqrt(mean(g^2) - lam * mean(g)^2)` (Eigen et al. 2014, as in BTS).

    Args:
        mean_of_squares, mean: of the log errors g.
        lam: degree of scale invariance, 0 to 1.
    """
    return 10.0 * torch.sqrt(torch.clamp(mean_of_squares - lam * mean.square(), min=1e-12))
