"""Checkpoints: the trained part of a model, apart from CLIP, in one `.safetensors` file.

The file holds `mirror.*` and `decoder.*`; its metadata holds everything needed to rebuild and to
verify the model. A model whose CLIP is small enough to travel (`nano`) also holds `clip.*`, in FP16.
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
FREE = {"preset", "pretrained", "size_multiple", "depth_limits_m", "focal"}
"""Settings that training may change between a checkpoint and what goes on from it."""


def save_checkpoint(network: DepthNetwork, path: Path, *, training: dict[str, Any] | None = None) -> None:
    """Write `network` to `path`, whole or not at all.

    Args:
        training: what is known of its training (data, epochs, measured metrics); JSON values.
    """
    tensors = {name: p.detach().cpu().contiguous() for name, p in network.trainable().items()}
    info = CheckpointInfo(
        model=network.config,
        clip_sha256=network.clip_sha256,
        weights_sha256=tensors_sha256(tensors),
        training=training,
    )
    if network.config.pretrained == EMBEDDED:
        assert not network.tower.has_tokens, "a ViT's position embedding was resized; its hash would not hold"
        tensors |= {CLIP_PREFIX + name: _half(t) for name, t in network.clip.state_dict().items()}
    with atomic_write(path) as temporary:
        # In memory first: a full disk is then Python's own error, which `written_whole` knows.
        temporary.write_bytes(save(tensors, metadata={CHECKPOINT_KEY: json.dumps(asdict(info))}))


def _half(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).contiguous()


def load_checkpoint(
    path: Path, *, clip_weights: Path | None = None, size_hw: tuple[int, int] | None = None
) -> tuple[DepthNetwork, CheckpointInfo]:
    """Rebuild the network of a checkpoint, in eval mode, and verify it.

    Args:
        clip_weights: local CLIP weights, where the checkpoint does not embed them.
        size_hw: another network size than the one trained at.

    Raises:
        InputError: the file is missing, truncated or altered, or CLIP's weights are not those it
            was trained with.
        OptionError: `size_hw` is no multiple of the patch.
    """
    info, tensors = _read(path)
    embedded = {name.removeprefix(CLIP_PREFIX): t for name, t in tensors.items() if name.startswith(CLIP_PREFIX)}
    config = info.model
    if size_hw is not None:
        check_size(config, size_hw)
    clip = create_clip(config, clip_weights)
    if config.pretrained == EMBEDDED:
        _check_fit(clip.state_dict(), embedded, path)
        clip.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in embedded.items()})
    network = DepthNetwork(config if size_hw is None else replace(config, size_hw=size_hw), clip)
    _verify_clip(network, info, path, clip_weights)
    _load_trained(network, tensors, path)
    return network.eval(), info


def start_from(network: DepthNetwork, path: Path) -> CheckpointInfo:
    """Give `network` the mirror and decoder of a checkpoint, to train on from there.

    Raises:
        InputError: the file is missing, truncated or altered, or of another model or other CLIP weights.
    """
    info, tensors = _read(path)
    cure = f"Train the model that it holds: --preset {info.model.preset}, or --recipe with its settings."
    there, here = asdict(info.model), asdict(network.config)
    differing = [name for name in here if name not in FREE and there[name] != here[name]]
    if differing:
        name = differing[0]
        raise InputError(
            f"{path} holds another model than the one to train.",
            f"Its {name} is {there[name]}, here it is {here[name]}.",
            cure,
        )
    if network.clip_sha256 != info.clip_sha256:
        raise InputError(
            f"{path} was trained with other CLIP weights.",
            f"Their sha256 is {info.clip_sha256[:12]}…, here it is {network.clip_sha256[:12]}…",
            cure,
        )
    _load_trained(network, tensors, path)
    return info


def _read(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Header and tensors of a checkpoint whose trained part is what was written."""
    existing_file(path, "checkpoint")
    info = read_checkpoint_info(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:  # the header was whole, the rest is not
        raise InputError(f"The checkpoint {path} is damaged.", str(error), "Copy or train it again.") from error
    if tensors_sha256(_trained(tensors)) != info.weights_sha256:
        raise InputError(
            f"The checkpoint {path} was altered after it was written.",
            f"Its mirror and decoder do not hash to {info.weights_sha256[:12]}… as its header says.",
            "Copy the original file again; do not use this one.",
        )
    return info, tensors


def _trained(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if not name.startswith(CLIP_PREFIX)}


def _verify_clip(network: DepthNetwork, info: CheckpointInfo, path: Path, clip_weights: Path | None) -> None:
    if network.clip_sha256 == info.clip_sha256:
        return
    if info.model.pretrained == EMBEDDED:
        raise InputError(
            f"The towers inside {path} are other CLIP weights than it was trained with.",
            f"Their sha256 is {network.clip_sha256[:12]}…, its header says {info.clip_sha256[:12]}…",
            "The file was altered or damaged: copy the original again.",
        )
    source = str(clip_weights or info.model.pretrained)
    raise InputError(
        f"{source} holds other CLIP weights than {path} was trained with.",
        f"sha256 of the weights is {network.clip_sha256[:12]}…, the checkpoint needs {info.clip_sha256[:12]}…",
        f"Pass the {info.model.pretrained!r} weights of {info.model.clip_model} with --clip-weights FILE.",
    )


def _load_trained(network: DepthNetwork, tensors: dict[str, Tensor], path: Path) -> None:
    parameters, trained = network.trainable(), _trained(tensors)
    _check_fit(parameters, trained, path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained[name])


def _check_fit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    wrong = sorted(
        set(wanted).symmetric_difference(found)
        | {name for name in set(wanted) & set(found) if wanted[name].shape != found[name].shape}
    )
    if wrong:
        raise InputError(
            f"The checkpoint {path} does not fit the model it names.",
            f"{len(wrong)} tensors are missing, unknown or of another shape, such as {wrong[0]}.",
            "It was written by another version; train or download it again.",
        )
