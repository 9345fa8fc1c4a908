"""CLIP2Depth: frozen towers, a mirror, a decoder ("CLIP Can Understand Depth", arXiv 2402.03251)."""

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
    """Metric depth from normalised images.

    Only `mirror` and `decoder` learn. The towers keep eval mode and take no gradient whatever
    `train()` says, so that batch statistics and dropout of a frozen CLIP never move.

    Args:
        config: the model, its size included.
        clip: open_clip's model at its native size; this network resizes and keeps it.
    """

    def __init__(self, config: ModelConfig, clip: ClipModel) -> None:
        super().__init__()
        check_size(config, config.size_hw)
        self.config = config
        self.clip_sha256 = clip_sha256(clip)
        self.clip = clip.eval().requires_grad_(False)
        resize_input(clip, config.size_hw)
        self.tower = ImageTower(clip, config.taps)
        self.text = TextPath(clip)
        if config.mirror_length > self.text.context_length:
            raise OptionError(
                f"A mirror of {config.mirror_length} rows does not fit {config.clip_model}.",
                f"Its text tower has {self.text.context_length} positions.",
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
        for frozen in (self.clip, self.tower, self.text):
            frozen.eval()
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name: `mirror.*` and `decoder.*`."""
        return {name: p for name, p in self.named_parameters() if name.startswith(("mirror.", "decoder."))}

    def at(self, size_hw: SizeHW) -> DepthNetwork:
        """A copy for images of another size, with the same weights.

        Raises:
            OptionError: the tower cannot run at this size.
        """
        check_size(self.config, size_hw)
        other = copy.deepcopy(self)
        other.config = replace(self.config, size_hw=size_hw)
        resize_input(other.clip, size_hw)
        return other

    def text_feature(self) -> Tensor:
        """The mirror's text feature, shape `[feature]`: a constant once training is over."""
        return self.text(self.mirror())

    def forward(self, images: Tensor) -> Tensor:
        """
        Args:
            images: normalised RGB, float32, shape `[B, 3, H, W]` at the configured size.

        Returns:
            Depth in metres, float32, shape `[B, H, W]`.
        """
        return self.decode(self.tower(images), (images.shape[2], images.shape[3]))

    def decode(self, taps: Taps, size_hw: SizeHW) -> Tensor:
        """Depth from the tower's taps, for images of `size_hw`; all that depends on what learns."""
        return self.decoder(taps, self.text_feature(), size_hw)


def normalise_pixels(frames: Tensor, config: PreprocessConfig) -> Tensor:
    """uint8 RGB `[B, H, W, 3]` to normalised float32 `[B, 3, H, W]`, in channels-last memory."""
    mean = torch.tensor(config.mean, device=frames.device)
    std = torch.tensor(config.std, device=frames.device)
    return ((frames.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def create_network(config: ModelConfig, clip_weights: Path | None = None, seed: int = 0) -> DepthNetwork:
    """A network with CLIP's weights and a freshly initialised mirror and decoder."""
    clip = create_clip(config, clip_weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DepthNetwork(config, clip)
