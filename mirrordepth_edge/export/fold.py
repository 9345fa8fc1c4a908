"""The network as it is exported: constants are folded, and unused parts are removed.

This is separate from the training model, to keep that free of export concerns. Changes:

* The text side is removed: FiLM's gamma and beta are constants, folded into the deepest reduce layer.
* A ViT's pixel scaling and normalisation are folded into its patch convolution, which is exact because that convolution
  has no padding. Other towers keep them as one multiplication and one addition.
* Convolutions that compute their padding at run time (TensorFlow's "same") get constant padding.
* A ViT with dynamic height or width resizes its position embedding in the graph.
* Attention is matmul, softmax, matmul, with the scale folded into the query projection: the form that all versions of
  TensorRT fuse.
* Towers stop at the last tap.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirrordepth_edge.config import InputKind, PreprocessConfig, SizeHW
from mirrordepth_edge.model.clip import Taps
from mirrordepth_edge.model.decoder import FiLM
from mirrordepth_edge.model.network import DepthNetwork

PIXEL_MAX = 255.0


class ExplicitAttention(nn.Module):
    """Self-attention of an `nn.MultiheadAttention` as separate operations, with pre-scaled queries.

    A drop-in replacement: it takes the same arguments and returns `(output, None)`.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if not attention.batch_first or attention.in_proj_weight is None or attention.bias_k is not None:
            raise ValueError("only batch-first self-attention with one input projection is supported")
        self.heads = attention.num_heads
        self.head_width = attention.head_dim
        width = attention.embed_dim
        scale = torch.ones(3 * width)
        scale[:width] = 1.0 / math.sqrt(self.head_width)
        self.qkv = nn.Linear(width, 3 * width)
        with torch.no_grad():
            self.qkv.weight.copy_(attention.in_proj_weight * scale[:, None])
            self.qkv.bias.copy_(attention.in_proj_bias * scale)
        self.out = attention.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if attn_mask is not None:
            raise ValueError("attention masks are not supported")
        batch, tokens, width = query.shape
        q, k, v = (
            part.reshape(batch, tokens, self.heads, self.head_width).transpose(1, 2)
            for part in self.qkv(query).chunk(3, dim=-1)
        )
        weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width)), None


class FoldedBlock(nn.Module):
    """A post-norm `nn.TransformerEncoderLayer` with explicit attention and without dropout."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.attention = ExplicitAttention(layer.self_attn)
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.linear1, self.linear2 = layer.linear1, layer.linear2

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x)[0])
        return cast(Tensor, self.norm2(x + self.linear2(torch.relu(self.linear1(x)))))


class PaddedConv(nn.Conv2d):
    """timm's `Conv2dSame` for sides that are multiples of its stride, for which its padding is constant."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            cast(Any, conv.kernel_size),
            cast(Any, conv.stride),
            dilation=cast(Any, conv.dilation),
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.padding_lrtb: list[int] = []
        for size, stride, dilation in reversed([*zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)]):
            total = max((size - 1) * dilation + 1 - stride, 0)
            self.padding_lrtb += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.padding_lrtb))


class DynamicPositions(nn.Module):
    """A ViT's position embedding for any grid size, resized as in open_clip (`model.clip.resize_input`).

    Args:
        embedding: as trained, class token first, shape `[1 + h*w, C]`.
        grid_hw: the grid that it was trained for.
    """

    class_token: Tensor
    cells: Tensor

    def __init__(self, embedding: Tensor, grid_hw: SizeHW) -> None:
        super().__init__()
        self.register_buffer("class_token", embedding[:1].clone())
        self.grid_hw = grid_hw
        self.register_buffer("cells", embedding[1:].reshape(grid_hw[0], -1).clone())  # [h, w*C]

    def forward(self, height: int, width: int) -> Tensor:
        """Return the embedding of a grid of `height` x `width` cells, class token first, `[1 + height*width, C]`."""
        # Matrix products, because TensorRT's Resize has no antialiasing.
        (rows, columns), channels = self.grid_hw, self.class_token.shape[1]
        x = resize_weights(rows, height) @ self.cells
        x = resize_weights(columns, width) @ x.reshape(height, columns, channels)
        return torch.cat([self.class_token, x.reshape(height * width, channels)])


def resize_weights(source: int, target: int) -> Tensor:
    """Return the matrix that resizes `source` samples to `target`, shape `[target, source]`; rows sum to 1.

    This is Keys' cubic convolution with a = -1/2, widened for downscaling, like PyTorch's `bicubic` with
    `antialias=True` and Pillow's `BICUBIC`.
    """
    index = torch.arange(target, dtype=torch.float32)
    step = source / (index[-1:] + 1.0)  # not source / target, which tracing would turn into a constant
    centre = (index[:, None] + 0.5) * step
    x = ((torch.arange(source, dtype=torch.float32) + 0.5 - centre) / step.clamp(min=1.0)).abs()
    near, far = ((1.5 * x - 2.5) * x) * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))
    return weights / weights.sum(dim=1, keepdim=True)


class FoldedTower(nn.Module):
    """The image tower up to its last tap, with explicit attention; returns the deepest tap first.

    Args:
        network: the trained network; it is not changed.
        dynamic_size: accept images of other sizes than the network's.
    """

    visual: Any

    def __init__(self, network: DepthNetwork, dynamic_size: bool = False) -> None:
        from timm.layers import Conv2dSame

        super().__init__()
        self.taps = network.tower.taps
        self.has_tokens = network.tower.has_tokens
        self.visual = copy.deepcopy(network.tower.visual)
        for module in self.visual.modules():
            for name, child in module.named_children():
                if isinstance(child, nn.MultiheadAttention):
                    setattr(module, name, ExplicitAttention(child))
                elif isinstance(child, Conv2dSame):
                    setattr(module, name, PaddedConv(child))
            if hasattr(module, "fused_attn"):  # selects timm's own explicit attention
                module.fused_attn = False
        self.positions = DynamicPositions(*self.visual.trained_positions) if dynamic_size and self.has_tokens else None

    def embed(self, images: Tensor) -> Tensor:
        """Return a ViT's tokens before its first block: class token and patches, with positions added."""
        patches = self.visual.conv1(images)
        batch, channels, height, width = patches.shape
        tokens = torch.cat(
            [self.visual.class_embedding.expand(batch, 1, channels), patches.flatten(2).transpose(1, 2)], dim=1
        )
        positions = self.visual.positional_embedding if self.positions is None else self.positions(height, width)
        return cast(Tensor, self.visual.ln_pre(tokens + positions))

    def forward(self, images: Tensor) -> Taps:
        options = {"indices": list(self.taps), "stop_early": True}
        if self.has_tokens:
            # Not `VisionTransformer.forward_intermediates`, which would split the class token off every tap, only
            # for it to be concatenated again.
            tokens = self.embed(images)
            _, features = self.visual.transformer.forward_intermediates(tokens, **options)
            return Taps(features[::-1], prefix=1)
        out = self.visual.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW", **options)
        return Taps(out["image_intermediates"][::-1], prefix=0)


def fold_film(reduce: Any, film: FiLM, text_feature: Tensor) -> Any:
    """Fold `gamma * (W x + b) + beta` into one layer with weight `gamma * W` and bias `gamma * b + beta`.

    Args:
        reduce: the linear layer or 1x1 convolution of the deepest tap; it is not changed.
        film: computes gamma and beta.
        text_feature: shape `[feature]`.
    """
    folded = copy.deepcopy(reduce)
    with torch.no_grad():
        gamma, beta = film.constants(text_feature)
        folded.weight.mul_(gamma.reshape(-1, *[1] * (folded.weight.ndim - 1)))
        folded.bias.mul_(gamma).add_(beta)
    return folded


def fold_normalisation(conv: Any, preprocess: PreprocessConfig) -> nn.Conv2d:
    """Return a convolution that takes pixels 0..255 instead of the normalised images that `conv` takes.

    `W ((x/255 - mean) / std)` is `(W / (255 std)) x - sum(W mean / std)`.
    """
    if any(conv.padding):
        raise ValueError("cannot fold into a convolution with padding, which is zero after normalisation, not before")
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)[None, :, None, None]
    std = torch.tensor(preprocess.std, dtype=torch.float64)[None, :, None, None]
    weight = conv.weight.detach().double()
    bias = torch.zeros(conv.out_channels, dtype=torch.float64) if conv.bias is None else conv.bias.double()
    folded: Any = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=True)
    with torch.no_grad():
        folded.weight.copy_(weight / (PIXEL_MAX * std))
        folded.bias.copy_(bias - (weight * mean / std).sum(dim=(1, 2, 3)))
    return cast(nn.Conv2d, folded)


class FoldedNetwork(nn.Module):
    """A `DepthNetwork` as it is exported.

    Args:
        network: the trained network, in eval mode; it is not changed.
        io: `uint8` takes RGB `[B, H, W, 3]` in 0..255; `float` takes normalised `[B, 3, H, W]`.
        dynamic_size: accept images of other sizes than the network's.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, network: DepthNetwork, io: InputKind = "uint8", dynamic_size: bool = False) -> None:
        super().__init__()
        preprocess = network.config.preprocess
        self.io = io
        self.tower = FoldedTower(network, dynamic_size)
        self.scales_pixels = io == "uint8" and not self.tower.has_tokens
        if io == "uint8" and self.tower.has_tokens:
            self.tower.visual.conv1 = fold_normalisation(self.tower.visual.conv1, preprocess)
        std = torch.tensor(preprocess.std).reshape(1, 3, 1, 1)
        self.register_buffer("pixel_scale", 1.0 / (PIXEL_MAX * std))
        self.register_buffer("pixel_shift", -torch.tensor(preprocess.mean).reshape(1, 3, 1, 1) / std)

        self.decoder = copy.deepcopy(network.decoder)
        with torch.no_grad():
            text_feature = network.text_feature()
        self.decoder.reduces[0] = fold_film(self.decoder.reduces[0], self.decoder.film, text_feature)
        blocks: Any = self.decoder.blocks
        self.decoder.blocks = nn.ModuleList(FoldedBlock(block) for block in blocks)
        del self.decoder.film
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return depth in metres, float32 `[B, H, W]`."""
        if self.io == "uint8":
            # Cast first, because TensorRT cannot transpose uint8.
            image = image.to(torch.float32).permute(0, 3, 1, 2)
        if self.scales_pixels:
            image = image * self.pixel_scale + self.pixel_shift
        taps = self.tower(image)
        reduced = [reduce(tap) for reduce, tap in zip(self.decoder.reduces, taps.features, strict=True)]
        return self.decoder.decode(reduced, taps.prefix, (image.shape[2], image.shape[3]))
