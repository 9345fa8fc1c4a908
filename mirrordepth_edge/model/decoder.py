"""The compact decoder: tower taps and one text feature in, metric depth out.

Two forms, one idea. The deepest tap is reduced, modulated by the text feature (FiLM, once, here) and
seen as a whole by transformer blocks; shallower taps are added on the way to pixels.

`TokenDecoder` is the paper's, for ViTs, whose taps have one grid: CLIPSeg's decoder (arXiv 2112.10003)
as "CLIP Can Understand Depth" (arXiv 2402.03251) conditions it.

`PyramidDecoder` is for convolutional towers, whose taps are maps, each twice as fine as the one
before: features grow finer step by step, as in RefineNet (arXiv 1611.06612) and DPT (arXiv 2103.13413).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirrordepth_edge.config import ModelConfig, SizeHW
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.model.clip import Taps

FIRST_GUESS_M = 2.5
"""What an untrained pyramid answers about everywhere: the middle of a room."""


class FiLM(nn.Module):
    """Feature-wise modulation `gamma(t) * x + beta(t)` (arXiv 1709.07871; no "1 +", as CLIPSeg)."""

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(feature_width, width)
        self.beta = nn.Linear(feature_width, width)

    def constants(self, text_feature: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, shape `[width]` each, for a text feature of shape `[feature]`."""
        return self.gamma(text_feature), self.beta(text_feature)

    def forward(self, x: Tensor, text_feature: Tensor) -> Tensor:
        """`x` is tokens `[B, N, width]` or a map `[B, width, h, w]`."""
        gamma, beta = self.constants(text_feature)
        if x.dim() == 4:
            gamma, beta = gamma[:, None, None], beta[:, None, None]
        return gamma * x + beta


class Decoder(nn.Module, ABC):
    """What both forms share.

    Args:
        config: the model.
        feature_width: length of the text feature.
        blocks: transformer blocks.
    """

    reduces: nn.ModuleList
    """One linear layer for each tap, deepest first."""

    def __init__(self, config: ModelConfig, feature_width: int, blocks: int) -> None:
        super().__init__()
        self.dropout = 0.0
        self.film = FiLM(feature_width, config.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.heads, dim_feedforward=config.feedforward, dropout=0.0, batch_first=True
            )
            for _ in range(blocks)
        )

    def set_dropout(self, share: float) -> None:
        """Go without a share of each tap's channels, and of what the blocks pass on, while training."""
        self.dropout = share
        for block in self.blocks:
            for part in block.modules():
                if isinstance(part, nn.Dropout):
                    part.p = share

    def forward(self, taps: Taps, text_feature: Tensor, size_hw: SizeHW) -> Tensor:
        """
        Args:
            taps: tower features, deepest first.
            text_feature: shape `[feature]`.
            size_hw: size of the images in pixels.

        Returns:
            Depth in metres, float32, shape `[B, H, W]`.
        """
        reduced = [
            reduce(self._without_some_channels(tap)) for reduce, tap in zip(self.reduces, taps.features, strict=True)
        ]
        return self.decode([self.film(reduced[0], text_feature), *reduced[1:]], taps.prefix, size_hw)

    @abstractmethod
    def decode(self, reduced: Sequence[Tensor], prefix: int, size_hw: SizeHW) -> Tensor:
        """Depth from reduced taps, deepest first and modulated: all that comes after FiLM."""

    def _without_some_channels(self, tap: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return tap
        if tap.dim() == 4:
            return F.dropout2d(tap, self.dropout)
        return F.dropout1d(tap.transpose(1, 2), self.dropout).transpose(1, 2)


class TokenDecoder(Decoder):
    """The paper's: a block after each tap; then the class token is dropped and two transposed convolutions
    bring the grid to pixels.

    Args:
        config: the model.
        channels: of each tap, deepest first.
        feature_width: length of the text feature.
    """

    def __init__(self, config: ModelConfig, channels: Sequence[int], feature_width: int) -> None:
        super().__init__(config, feature_width, blocks=len(channels))
        self.stride = config.stride
        self.reduces = nn.ModuleList(nn.Linear(each, config.width) for each in channels)
        self.head = nn.Sequential(
            nn.Conv2d(config.width, config.width, kernel_size=3, padding=1),
            nn.ReLU(),
            upsample(config.width, config.width // 2, config.head_strides[0]),
            nn.ReLU(),
            upsample(config.width // 2, 1, config.head_strides[1]),
            nn.Softplus(),
        )

    def decode(self, reduced: Sequence[Tensor], prefix: int, size_hw: SizeHW) -> Tensor:
        x = self.blocks[0](reduced[0])
        for block, shallower in zip(self.blocks[1:], reduced[1:], strict=True):
            x = block(x + shallower)
        return self.to_depth(x, prefix, size_hw)

    def to_depth(self, tokens: Tensor, prefix: int, size_hw: SizeHW) -> Tensor:
        """Drop the prefix tokens, lay the rest on the grid and run the head."""
        grid_h, grid_w = size_hw[0] // self.stride, size_hw[1] // self.stride
        x = tokens[:, prefix:].transpose(1, 2)
        x = x.reshape(-1, x.shape[1], grid_h, grid_w)
        return self.head(x).squeeze(1)


def upsample(channels: int, out_channels: int, stride: int) -> nn.ConvTranspose2d:
    """A transposed convolution that paints each cell alone."""
    return nn.ConvTranspose2d(channels, out_channels, kernel_size=stride, stride=stride)


class PyramidDecoder(Decoder):
    """For maps: blocks see the deepest one as a whole; then, tap after tap, up to the next finer map, add, refine.

    Between maps it interpolates bilinearly: transposed convolutions would leave a checkerboard
    (Odena et al., distill.pub/2016/deconv-checkerboard).

    Args:
        config: the model.
        maps: channels and size of each tap, deepest first.
        feature_width: length of the text feature.

    Raises:
        OptionError: `config.pyramid` does not name the channels after each shallower tap.
    """

    def __init__(self, config: ModelConfig, maps: Sequence[tuple[int, SizeHW]], feature_width: int) -> None:
        super().__init__(config, feature_width, blocks=config.blocks)
        if len(config.pyramid) != len(maps) - 1:
            raise OptionError(
                f"{config.preset} has {len(maps)} taps and a decoder for {len(config.pyramid) + 1}.",
                "`pyramid` has the decoder's channels at each tap but the deepest.",
                "Give both the same length.",
            )
        widths = (config.width, *config.pyramid)
        heights = [size_hw[0] for _, size_hw in maps]
        self.reduces = nn.ModuleList(
            nn.Conv2d(each, width, kernel_size=1) for (each, _), width in zip(maps, widths, strict=True)
        )
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, fine, kernel_size=1), enlarge(high // low))
            for coarse, fine, low, high in zip(widths, widths[1:], heights, heights[1:], strict=False)
        )
        self.refines = nn.ModuleList(Refine(width) for width in config.pyramid)
        log_depth = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        with torch.no_grad():
            log_depth.weight.mul_(0.1)
            nn.init.constant_(cast(Tensor, log_depth.bias), math.log(FIRST_GUESS_M))
        self.head = nn.Sequential(log_depth, Exp(), enlarge(config.size_hw[0] // heights[-1]))

    def decode(self, reduced: Sequence[Tensor], prefix: int, size_hw: SizeHW) -> Tensor:
        x = reduced[0]
        tokens = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        x = tokens.transpose(1, 2).reshape(x.shape)
        for step, refine, finer in zip(self.steps, self.refines, reduced[1:], strict=True):
            x = refine(step(x) + finer)
        return self.head(x).squeeze(1)


class Refine(nn.Module):
    """RefineNet's residual unit: two 3x3 convolutions, each after a ReLU, and a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.second = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class Exp(nn.Module):
    """From the logarithm of metres to metres: what is learnt is relative, near and far alike."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def enlarge(factor: int) -> nn.Upsample:
    """Bilinear by a fixed factor, not to a size taken from a tensor: the exported graph stays static."""
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)
