"""Random ViTs that are as sensitive to precision as CLIP: outlier channels in the residual stream, varied depth."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirrordepth_edge.model.network import DepthNetwork


def with_outliers(network: DepthNetwork, channels: int = 3, size: float = 60.0, seed: int = 0) -> DepthNetwork:
    """Add outlier channels to the residual stream, as in trained CLIP towers.

    They are added after the first normalisation and stay in every residual sum. The gains of each block's normalisation
    reduce them and raise the other channels, so that depth depends on small values next to large ones.
    """
    import torch

    network = copy.deepcopy(network)
    visual: Any = network.tower.visual
    width = visual.ln_pre.weight.numel()
    generator = torch.Generator().manual_seed(seed)
    out = torch.randperm(width, generator=generator)[:channels]
    deviation = (1 + size**2 * channels / width) ** 0.5
    with torch.no_grad():
        visual.ln_pre.bias[out] = size * torch.where(torch.rand(channels, generator=generator) < 0.5, -1.0, 1.0)
        for block in visual.transformer.resblocks:
            for norm in (block.ln_1, block.ln_2):
                norm.weight.mul_(deviation)
                norm.weight[out] = 0.05
        decoder: Any = network.decoder
        for reduce in decoder.reduces:
            reduce.weight[:, out] = 0.0
    return network


def with_varied_depth(network: DepthNetwork, gain: float = 30.0) -> DepthNetwork:
    """Raise the gain of the head, because the depth of a random network hardly varies and hides precision errors."""
    import torch

    network = copy.deepcopy(network)
    decoder: Any = network.decoder
    last = [module for module in decoder.head.modules() if hasattr(module, "weight")][-1]
    with torch.no_grad():
        last.weight.mul_(gain)
        last.bias.add_(3.0)
    return network
