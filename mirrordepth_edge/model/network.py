"""CLIP2Depth: metric depth from frozen CLIP towers, a mirror and a decoder.

Source: "CLIP Can Understand Depth", arXiv 2402.03251.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mirrordepth_edge.config import ModelConfig, PreprocessConfig, SizeHW, check_size
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.model.clip import ClipModel, ImageTower, Taps, TextPath, clip_sha256, create_clip, resize_input
from mirrordepth_edge.model.decoder import Decoder, PyramidDecoder, TokenDecoder
from mirrordepth_edge.model.mirror import Mirror


class DepthNetwork(nn.Module):
    """The whole network: image `[B, 3, H, W]` to metric depth `[B, H, W]`.

    Only `mirror` and `decoder` are trained. The towers stay in eval mode without gradients, even after `train()`.

    Args:
        config: the model, including its input size.
        clip: open_clip's model at its native size; modified in place.
    """

    def __init__(self, config: ModelConfig, clip: ClipModel) -> None:
        super().__init__()
        check_size(config, config.size_hw)
        self.config = config
        # Before the resize, which changes the position embedding.
        self.clip_sha256 = clip_sha256(clip)
        self.clip = clip.eval().requires_grad_(False)
        resize_input(clip, config.size_hw)
        self.tower = ImageTower(clip, config.taps)
        self.text = TextPath(clip)
        if config.mirror_length > self.text.context_length:
            raise OptionError(
                f"A mirror of {config.mirror_length} rows is too long for {config.clip_model}.",
                f"The context length of its text tower is {self.text.context_length}.",
                f"Use mirror_length <= {self.text.context_length}.",
            )
        self.mirror = Mirror(config.mirror_length, self.text.embedding_width)
        self.decoder = self._decoder()

    def _decoder(self) -> Decoder:
        taps, feature_width = self.tower.probe(self.config.size_hw), self.text.feature_width
        maps = [(channels, size_hw) for channels, size_hw in taps if size_hw is not None]
        if maps:
            return PyramidDecoder(self.config, maps, feature_width)
        return TokenDecoder(self.config, [channels for channels, _ in taps], feature_width)

    def train(self, mode: bool = True) -> DepthNetwork:
        super().train(mode)
        # In training mode, batch normalisation would change its statistics.
        for frozen in (self.clip, self.tower, self.text):
            frozen.eval()
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name: `mirror.*` and `decoder.*`."""
        return {name: p for name, p in self.named_parameters() if name.startswith(("mirror.", "decoder."))}

    def at(self, size_hw: SizeHW) -> DepthNetwork:
        """Copy the network for another input size, with the same weights.

        Raises:
            OptionError: the image tower does not support this size.
        """
        check_size(self.config, size_hw)
        other = copy.deepcopy(self)
        other.config = replace(self.config, size_hw=size_hw)
        resize_input(other.clip, size_hw)
        return other

    def text_feature(self) -> Tensor:
        """Text feature of the mirror, `[feature]`; constant once training is over."""
        return self.text(self.mirror())

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images: normalised RGB, float32 `[B, 3, H, W]`, at the configured size.

        Returns:
            Depth float32 `[B, H, W]`, metres.
        """
        return self.decode(self.tower(images), (images.shape[2], images.shape[3]))

    def decode(self, taps: Taps, size_hw: SizeHW) -> Tensor:
        """Depth `[B, H, W]`, metres, from features of the image tower for images of `size_hw`: the trainable part."""
        return self.decoder(taps, self.text_feature(), size_hw)


def normalise_pixels(frames: Tensor, config: PreprocessConfig) -> Tensor:
    """Normalise uint8 RGB `[B, H, W, 3]` to float32 `[B, 3, H, W]` in channels-last memory format."""
    mean = torch.tensor(config.mean, device=frames.device)
    std = torch.tensor(config.std, device=frames.device)
    # A permuted view, not a copy: channels-last suits the convolutions of GPUs.
    return ((frames.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def create_network(config: ModelConfig, clip_weights: Path | None = None, seed: int = 0) -> DepthNetwork:
    """Create a network with CLIP's weights and an untrained mirror and decoder.

    Args:
        config: the model.
        clip_weights: local CLIP weights, used instead of a download.
        seed: of the initial mirror and decoder.
    """
    clip = create_clip(config, clip_weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DepthNetwork(config, clip)
