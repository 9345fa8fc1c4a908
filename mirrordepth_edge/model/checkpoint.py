"""Checkpoints: the trained part of a model in one `.safetensors` file.

The file holds the tensors `mirror.*` and `decoder.*`, and in its metadata all that is needed to rebuild and verify the
model. A model with a small CLIP (`nano`) also embeds `clip.*` in FP16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mirrordepth_edge.config import check_size
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import CHECKPOINT_KEY, CheckpointInfo, read_checkpoint_info
from mirrordepth_edge.model.clip import EMBEDDED, create_clip, tensors_sha256
from mirrordepth_edge.model.network import DepthNetwork
from mirrordepth_edge.support.files import atomic_write, existing_file

CLIP_PREFIX = "clip."
MUTABLE_SETTINGS = {"preset", "pretrained", "size_multiple", "depth_limits_m", "focal"}
"""Settings that may differ between a checkpoint and a training that starts from it."""


def save_checkpoint(network: DepthNetwork, path: Path, *, training: dict[str, Any] | None = None) -> None:
    """Write a network to a file, atomically.

    Args:
        network: the network.
        path: the checkpoint file.
        training: description of its training (data, epochs, metrics) as JSON values.
    """
    tensors = {name: p.detach().cpu().contiguous() for name, p in network.trainable().items()}
    info = CheckpointInfo(
        model=network.config, clip_sha256=network.clip_sha256, weights_sha256=tensors_sha256(tensors), training=training
    )
    if network.config.pretrained == EMBEDDED:
        assert not network.tower.has_tokens, "a ViT's position embedding was resized; its hash would not hold"
        clip = {name: t.half() if t.is_floating_point() else t for name, t in network.clip.state_dict().items()}
        tensors |= {CLIP_PREFIX + name: t.contiguous() for name, t in clip.items()}
    with atomic_write(path) as temporary:
        # Serialised in memory first: a full disk then raises OSError, which `atomic_write` reports.
        temporary.write_bytes(save(tensors, metadata={CHECKPOINT_KEY: json.dumps(asdict(info))}))


def load_checkpoint(
    path: Path, *, clip_weights: Path | None = None, size_hw: tuple[int, int] | None = None
) -> tuple[DepthNetwork, CheckpointInfo]:
    """Load and verify a checkpoint.

    Args:
        path: the checkpoint file.
        clip_weights: local CLIP weights, used instead of a download; not for checkpoints that embed them.
        size_hw: input size of the network; None for the size it was trained at.

    Returns:
        The network in eval mode, and the checkpoint's description.

    Raises:
        InputError: the file is missing, truncated or altered, or CLIP's weights are not those of the training.
        OptionError: `size_hw` is not a multiple of the patch size.
    """
    info, trained, embedded = _read(path)
    config = info.model
    if size_hw is not None:
        check_size(config, size_hw)
    clip = create_clip(config, clip_weights)
    if config.pretrained == EMBEDDED:
        _check_tensors(clip.state_dict(), embedded, path)
        clip.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in embedded.items()})
    network = DepthNetwork(config if size_hw is None else replace(config, size_hw=size_hw), clip)
    _verify_clip(network, info, path, clip_weights)
    _load_trained(network, trained, path)
    return network.eval(), info


def start_from(network: DepthNetwork, path: Path) -> CheckpointInfo:
    """Load mirror and decoder of a checkpoint into `network`, to continue training.

    Raises:
        InputError: the file is missing, truncated or altered, or has another model or other CLIP weights.
    """
    info, trained, _ = _read(path)
    cure = f"Train the model of the checkpoint: --preset {info.model.preset}, or --recipe with its settings."
    there, here = asdict(info.model), asdict(network.config)
    if differing := [name for name in here if name not in MUTABLE_SETTINGS and there[name] != here[name]]:
        name = differing[0]
        raise InputError(
            f"{path} has another model than the one to train.",
            f"Its {name} is {there[name]}, here it is {here[name]}.",
            cure,
        )
    if network.clip_sha256 != info.clip_sha256:
        raise InputError(
            f"{path} was trained with other CLIP weights.",
            f"Their sha256 is {info.clip_sha256[:12]}…, here it is {network.clip_sha256[:12]}…",
            cure,
        )
    _load_trained(network, trained, path)
    return info


def _read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor], dict[str, Tensor]]:
    """Read a checkpoint's header, trained part and embedded CLIP; verify the hash of the trained part."""
    existing_file(path, "checkpoint")
    info = read_checkpoint_info(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:  # the header is intact, the rest is not
        raise InputError(f"The checkpoint {path} is damaged.", str(error), "Copy or train it again.") from error
    # CLIP's weights have a hash of their own (`clip_sha256`).
    embedded = {name: tensors.pop(name) for name in list(tensors) if name.startswith(CLIP_PREFIX)}
    if tensors_sha256(tensors) != info.weights_sha256:
        raise InputError(
            f"The checkpoint {path} was altered after it was written.",
            f"The sha256 of its mirror and decoder is not {info.weights_sha256[:12]}… as in its header.",
            "Copy the original file again.",
        )
    return info, tensors, {name.removeprefix(CLIP_PREFIX): t for name, t in embedded.items()}


def _verify_clip(network: DepthNetwork, info: CheckpointInfo, path: Path, clip_weights: Path | None) -> None:
    if network.clip_sha256 == info.clip_sha256:
        return
    if info.model.pretrained == EMBEDDED:
        raise InputError(
            f"{path} embeds other CLIP weights than it was trained with.",
            f"Their sha256 is {network.clip_sha256[:12]}…, its header says {info.clip_sha256[:12]}…",
            "The file was altered or damaged: copy the original again.",
        )
    source = str(clip_weights or info.model.pretrained)
    raise InputError(
        f"{source} holds other CLIP weights than {path} was trained with.",
        f"sha256 of the weights is {network.clip_sha256[:12]}…, the checkpoint needs {info.clip_sha256[:12]}…",
        f"Pass the {info.model.pretrained!r} weights of {info.model.clip_model} with --clip-weights FILE.",
    )


def _load_trained(network: DepthNetwork, trained: dict[str, Tensor], path: Path) -> None:
    parameters = network.trainable()
    _check_tensors(parameters, trained, path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained[name])


def _check_tensors(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], path: Path) -> None:
    here, there = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (expected, actual))
    if wrong := sorted({name for name, _ in here.items() ^ there.items()}):
        raise InputError(
            f"The checkpoint {path} does not match its model.",
            f"{len(wrong)} tensors are missing, unexpected or of another shape, such as {wrong[0]}.",
            "It was written by another version; train or download it again.",
        )
