"""The compact decoder: tower taps and one text feature in, metric depth out.

Deepest tap first: reduce, FiLM by the text feature (once, here), block; then each shallower tap is
reduced, added and followed by a block; at last the class token is dropped and two transposed
convolutions bring the grid to pixels. The form follows CLIPSeg's decoder (arXiv 2112.10003) as
"CLIP Can Understand Depth" (arXiv 2402.03251) conditions it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirrordepth_edge.config import ModelConfig, SizeHW
from mirrordepth_edge.core.clip import Taps


class TokenReduce(nn.Linear):
    """A token tap to decoder width: `[B, N, C]` to `[B, N, width]`."""


class MapReduce(nn.Module):
    """A map tap to decoder width on the common grid: `[B, C, h, w]` to `[B, grid_h*grid_w, width]`.

    A map finer than the grid is read by a convolution whose kernel equals its stride, so that each
    cell sees all of its own pixels; a coarser one is resized bilinearly after a 1x1 convolution.
    """

    def __init__(self, channels: int, width: int, map_hw: SizeHW, grid_hw: SizeHW) -> None:
        super().__init__()
        ratio = max(map_hw[0] // grid_hw[0], 1)
        self.finer = ratio > 1
        self.scale = 1.0 if self.finer else grid_hw[0] / map_hw[0]
        self.conv = nn.Conv2d(channels, width, kernel_size=ratio, stride=ratio)

    def forward(self, tap: Tensor) -> Tensor:
        x = self.conv(tap)
        if self.scale != 1.0:
            # A fixed factor, not a size taken from a tensor: the exported graph stays static.
            x = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return x.flatten(2).transpose(1, 2)


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
        gamma, beta = self.constants(text_feature)
        return gamma * x + beta


class Head(nn.Sequential):
    """Grid features `[B, width, h, w]` to depth in metres `[B, 1, h*stride, w*stride]`, > 0."""

    def __init__(self, width: int, strides: tuple[int, int], overlap: bool) -> None:
        upsample = overlapping_upsample if overlap else plain_upsample
        super().__init__(
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(),
            upsample(width, width // 2, strides[0]),
            nn.ReLU(),
            upsample(width // 2, 1, strides[1]),
            nn.Softplus(),
        )


def plain_upsample(channels: int, out_channels: int, stride: int) -> nn.ConvTranspose2d:
    """A transposed convolution that paints each cell alone."""
    return nn.ConvTranspose2d(channels, out_channels, kernel_size=stride, stride=stride)


def overlapping_upsample(channels: int, out_channels: int, stride: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as bilinear interpolation of randomly mixed channels.

    Its kernel is twice its stride, so that neighbouring cells blend; what it learns on top of the
    smooth start shows no checkerboard (Odena et al., distill.pub/2016/deconv-checkerboard).
    """
    layer = nn.ConvTranspose2d(channels, out_channels, kernel_size=2 * stride, stride=stride, padding=stride // 2)
    ramp = 1 - (torch.arange(2 * stride) + 0.5 - stride).abs() / stride
    mix = torch.empty(channels, out_channels)
    nn.init.kaiming_normal_(mix.T, nonlinearity="relu")
    assert layer.bias is not None, "transposed convolutions have one unless told otherwise"
    with torch.no_grad():
        layer.weight.copy_(mix[:, :, None, None] * ramp[:, None] * ramp[None, :])
        layer.bias.zero_()
    return layer


class Decoder(nn.Module):
    """Taps and a text feature to depth.

    Args:
        config: the model.
        tap_shapes: channels and map size of each tap, deepest first (`ImageTower.probe`).
        feature_width: length of the text feature.
    """

    def __init__(self, config: ModelConfig, tap_shapes: list[tuple[int, SizeHW | None]], feature_width: int) -> None:
        super().__init__()
        self.stride = config.stride
        self.dropout = 0.0
        grid_hw = (config.size_hw[0] // config.stride, config.size_hw[1] // config.stride)
        self.reduces = nn.ModuleList(
            TokenReduce(channels, config.width)
            if map_hw is None
            else MapReduce(channels, config.width, map_hw, grid_hw)
            for channels, map_hw in tap_shapes
        )
        self.film = FiLM(feature_width, config.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.heads, dim_feedforward=config.feedforward, dropout=0.0, batch_first=True
            )
            for _ in tap_shapes
        )
        self.head = Head(config.width, config.head_strides, config.head_overlap)

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
        deepest, *shallower = (
            reduce(self._without_some_channels(tap)) for reduce, tap in zip(self.reduces, taps.features, strict=True)
        )
        x = self.blocks[0](self.film(deepest, text_feature))
        for block, reduced in zip(self.blocks[1:], shallower, strict=True):
            x = block(x + reduced)
        return self.to_depth(x, taps.prefix, size_hw)

    def _without_some_channels(self, tap: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return tap
        if tap.dim() == 4:
            return F.dropout2d(tap, self.dropout)
        return F.dropout1d(tap.transpose(1, 2), self.dropout).transpose(1, 2)

    def to_depth(self, tokens: Tensor, prefix: int, size_hw: SizeHW) -> Tensor:
        """Drop the prefix tokens, lay the rest on the grid and run the head."""
        grid_h, grid_w = size_hw[0] // self.stride, size_hw[1] // self.stride
        x = tokens[:, prefix:].transpose(1, 2)
        x = x.reshape(-1, x.shape[1], grid_h, grid_w)
        return self.head(x).squeeze(1)
