"""Losses on metric depth. Predictions and truth in metres, truth <= 0 or not finite is no value.

Every loss here is a function of sums over valid pixels. Sums add up over processes, so that several
of them compute the very loss of one with the whole batch.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mirrordepth_edge.config import TrainConfig

EDGE_SCALES = 4


def log_error(prediction_m: Tensor, truth_m: Tensor, valid: Tensor) -> Tensor:
    """`ln p - ln y`, zero where not valid; same shape. Masked before the logarithm, never after.

    Args:
        prediction_m, truth_m: metres, shape `[B, H, W]`.
        valid: bool, same shape.
    """
    one = torch.ones((), device=prediction_m.device)
    return torch.log(torch.where(valid, prediction_m, one)) - torch.log(torch.where(valid, truth_m, one))


def error_sums(error: Tensor, valid: Tensor, *, edges: bool = False) -> Tensor:
    """What the losses are made of, float32 `[6]`: n, sum g, sum g^2, sum |g|; pairs, sum over pairs.

    Args:
        error: log errors g, shape `[B, H, W]`, zero where not valid.
        valid: bool, same shape.
        edges: also compare neighbours, at `EDGE_SCALES` scales (MegaDepth, arXiv 1804.00607): pairs
            of valid pixels and the sum of |g - g'| over them. Zeros otherwise.
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
    """The sums of all processes together; the gradient is that of this process's share alone.

    DistributedDataParallel then averages gradients, so multiply the loss by the number of processes.
    """
    if not dist.is_initialized():
        return sums
    total = sums.detach().clone()
    dist.all_reduce(total)
    return sums + (total - sums.detach())


def depth_loss(sums: Tensor, config: TrainConfig) -> Tensor:
    """SILog plus what `config` adds to it.

    Args:
        sums: of `error_sums`, float32 `[6]`.
    """
    n, g, g_squared, g_absolute, pairs, differences = sums
    loss = silog(g_squared / n, g / n, config.silog_lambda) + config.log_l1_weight * g_absolute / n
    return loss + config.edge_weight * differences / pairs.clamp(min=1)


def silog(mean_of_squares: Tensor, mean: Tensor, lam: float = 0.85) -> Tensor:
    """Scale-invariant log loss `10 * sqrt(mean(g^2) - lam * mean(g)^2)` (Eigen 2014; form of BTS).

    Args:
        mean_of_squares, mean: of log errors g.
        lam: share of a global scale error that is forgiven.
    """
    return 10.0 * torch.sqrt(torch.clamp(mean_of_squares - lam * mean.square(), min=1e-12))
