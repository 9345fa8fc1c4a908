"""Decoders: image features of several depths and one text feature to metric depth.

Both decoders project the deepest tap to `width` channels, modulate it by the text feature (FiLM), apply transformer
blocks, and add the projected shallower taps on the way to full resolution.

- `TokenDecoder`, for ViTs, whose taps share one grid: the decoder of CLIPSeg (arXiv 2112.10003), conditioned as in
  "CLIP Can Understand Depth" (arXiv 2402.03251).
- `PyramidDecoder`, for convolutional towers, whose taps are maps of increasing resolution: step-wise refinement as in
  RefineNet (arXiv 1611.06612) and DPT (arXiv 2103.13413).
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
"""Approximate output of an untrained `PyramidDecoder`, metres: a typical indoor depth."""


class FiLM(nn.Module):
    """Feature-wise linear modulation (arXiv 1709.07871) by a text feature t: `gamma(t) * x + beta(t)`, as in CLIPSeg.

    Args:
        feature_width: length of the text feature.
        width: number of channels of x.
    """

    def __init__(self, feature_width: int, width: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(feature_width, width)
        self.beta = nn.Linear(feature_width, width)

    def constants(self, text_feature: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift `[width]` for a text feature `[feature]`; constant once training is over."""
        return self.gamma(text_feature), self.beta(text_feature)

    def forward(self, x: Tensor, text_feature: Tensor) -> Tensor:
        """Modulate tokens `[B, N, width]` or maps `[B, width, h, w]`."""
        gamma, beta = self.constants(text_feature)
        if x.dim() == 4:
            gamma, beta = gamma[:, None, None], beta[:, None, None]
        return gamma * x + beta


class Decoder(nn.Module, ABC):
    """Base class: projection of the taps, FiLM and transformer blocks.

    Args:
        config: the model.
        feature_width: length of the text feature.
        blocks: number of transformer blocks.
    """

    reduces: nn.ModuleList
    """Projection of each tap to the decoder's channels, deepest first."""

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
        """Set the dropout rate of tap channels and transformer blocks; active in training mode only."""
        self.dropout = share
        for part in self.blocks.modules():
            if isinstance(part, nn.Dropout):
                part.p = share

    def forward(self, taps: Taps, text_feature: Tensor, size_hw: SizeHW) -> Tensor:
        """
        Args:
            taps: features of the image tower, deepest first.
            text_feature: `[feature]`.
            size_hw: size of the images in pixels.

        Returns:
            Depth float32 `[B, H, W]`, metres.
        """
        reduced = [reduce(self._drop_channels(tap)) for reduce, tap in zip(self.reduces, taps.features, strict=True)]
        return self.decode([self.film(reduced[0], text_feature), *reduced[1:]], taps.prefix, size_hw)

    @abstractmethod
    def decode(self, reduced: Sequence[Tensor], prefix: int, size_hw: SizeHW) -> Tensor:
        """Decode projected taps, deepest first, the deepest one modulated by FiLM."""

    def _drop_channels(self, tap: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return tap
        # Whole channels: a single value can be inferred from its neighbours.
        if tap.dim() == 4:
            return F.dropout2d(tap, self.dropout)
        return F.dropout1d(tap.transpose(1, 2), self.dropout).transpose(1, 2)


class TokenDecoder(Decoder):
    """Decoder for ViTs: one transformer block per tap, then two transposed convolutions from grid to pixels.

    Args:
        config: the model.
        channels: number of channels of each tap, deepest first.
        feature_width: length of the text feature.
    """

    def __init__(self, config: ModelConfig, channels: Sequence[int], feature_width: int) -> None:
        super().__init__(config, feature_width, blocks=len(channels))
        self.stride = config.stride
        self.reduces = nn.ModuleList(nn.Linear(tap_channels, config.width) for tap_channels in channels)
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
        """Drop the prefix tokens of `[B, prefix + h*w, width]`, reshape the rest to the grid and apply the head."""
        grid_h, grid_w = size_hw[0] // self.stride, size_hw[1] // self.stride
        x = tokens[:, prefix:].transpose(1, 2)
        x = x.reshape(-1, x.shape[1], grid_h, grid_w)
        return self.head(x).squeeze(1)


def upsample(channels: int, out_channels: int, stride: int) -> nn.ConvTranspose2d:
    """Transposed convolution whose kernel size equals its stride: output cells do not overlap."""
    return nn.ConvTranspose2d(channels, out_channels, kernel_size=stride, stride=stride)


class PyramidDecoder(Decoder):
    """Decoder for convolutional towers: transformer blocks on the deepest map, then per tap upsample, add, refine.

    Upsampling is bilinear, because transposed convolutions cause checkerboard artefacts (Odena et al.,
    distill.pub/2016/deconv-checkerboard). The head predicts log depth.

    Args:
        config: the model.
        maps: number of channels and size of each tap, deepest first.
        feature_width: length of the text feature.

    Raises:
        OptionError: `config.pyramid` does not have one entry per shallower tap.
    """

    def __init__(self, config: ModelConfig, maps: Sequence[tuple[int, SizeHW]], feature_width: int) -> None:
        super().__init__(config, feature_width, blocks=config.blocks)
        if len(config.pyramid) != len(maps) - 1:
            raise OptionError(
                f"{config.preset} has {len(maps)} taps, but a decoder for {len(config.pyramid) + 1}.",
                "`pyramid` must list the decoder's channels for each tap except the deepest.",
                "Make `pyramid` one shorter than `taps`.",
            )
        widths = (config.width, *config.pyramid)
        heights = [size_hw[0] for _, size_hw in maps]
        self.reduces = nn.ModuleList(
            nn.Conv2d(channels, width, kernel_size=1) for (channels, _), width in zip(maps, widths, strict=True)
        )
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, fine, kernel_size=1), enlarge(high // low))
            for coarse, fine, low, high in zip(widths, widths[1:], heights, heights[1:], strict=False)
        )
        self.refines = nn.ModuleList(Refine(width) for width in config.pyramid)
        log_depth = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        with torch.no_grad():
            # Small weights: the first predictions are close to the bias everywhere.
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
    """Residual convolution unit of RefineNet: two pre-activated 3x3 convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.second = nn.Conv2d(width, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class Exp(nn.Module):
    """Log depth to metres."""

    # Equal steps in log depth are equal relative differences, near and far.

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def enlarge(factor: int) -> nn.Upsample:
    """Bilinear upsampling by a fixed factor."""
    # A factor instead of a size: the exported graph then has no shape computations.
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)
