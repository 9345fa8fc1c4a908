"""Random ViTs made like CLIP where it matters for precision: a few residual channels far out, and depth that varies."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirrordepth_edge.model.network import DepthNetwork


def with_outliers(network: DepthNetwork, channels: int = 3, size: float = 60.0, seed: int = 0) -> DepthNetwork:
    """Plant outlier channels in the residual stream, as trained CLIP towers have them.

    They enter behind the first normalisation, pass through every sum, and are held down by each block's own
    normalisation, whose gains raise the others again; so depth is made of small values beside large ones.
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
        for reduce in network.decoder.reduces:
            reduce.weight[:, out] = 0.0
    return network


def with_varied_depth(network: DepthNetwork, gain: float = 30.0) -> DepthNetwork:
    """Raise the head's gain, for a random network's depth hardly varies and so hides what precision does to it."""
    import torch

    network = copy.deepcopy(network)
    last: Any = [module for module in network.decoder.head.modules() if hasattr(module, "weight")][-1]
    with torch.no_grad():
        last.weight.mul_(gain)
        last.bias.add_(3.0)
    return network
