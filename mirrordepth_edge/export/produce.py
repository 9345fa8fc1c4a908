"""Export a checkpoint to an ONNX file with its manifest: fold, convert, compare with PyTorch, write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mirrordepth_edge import __version__
from mirrordepth_edge.artefact import write_reference
from mirrordepth_edge.config import ExportConfig, Precision, SizeHW, check_size, get_preset
from mirrordepth_edge.export.fp16 import check_range, to_fp16
from mirrordepth_edge.export.parity import batches, check_parity, make_reference, measure_parity, worst_parity
from mirrordepth_edge.export.trace import export_onnx
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.machine.device import installed_versions
from mirrordepth_edge.manifest import Manifest, Parity, input_spec, output_spec, write_artefact
from mirrordepth_edge.support.files import sha256_of

if TYPE_CHECKING:
    from mirrordepth_edge.model.network import DepthNetwork

TOOLS = ("torch", "open_clip_torch", "timm", "onnx", "onnxscript", "nvidia-modelopt")


def produce_onnx(
    network: DepthNetwork,
    config: ExportConfig,
    output: Path,
    frames: Sequence[Frame],
    *,
    checkpoint_sha256: str,
    trained: bool,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Manifest:
    """Export `network` to `output` and check that its depth is the network's.

    Args:
        network: in eval mode, at the size to export; at the opt size for dynamic shapes.
        frames: real photos, for the FP16 conversion and the comparison with PyTorch.
        checkpoint_sha256: SHA-256 of the network's checkpoint.
        trained: False for random weights.
        on_stage: called with a description when a stage begins.

    Raises:
        GateError: the depth differs too much from PyTorch's; nothing is written.
        OptionError: the tower cannot run at one of the sizes.
    """
    import onnx

    for _, height, width in config.sizes or ():
        check_size(network.config, (height, width))
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "fp32.onnx"
        on_stage("folding and tracing")
        onnx.save(export_onnx(network, config), candidate)
        on_stage("comparing with PyTorch")
        parity = _checked_parity(candidate, network, frames, "fp32", config)
        if config.precision == "fp16":
            on_stage("converting to FP16")
            image = input_spec(network.config, replace(config, sizes=None))
            model = to_fp16(candidate, frames, network.config.preprocess, image)
            prepare = Preprocessor(network.config.preprocess, config.io)
            check_range(candidate, model, batches(frames, prepare, config.batch))
            candidate = Path(folder) / "fp16.onnx"
            onnx.save(model, candidate)
            on_stage("comparing FP16 with PyTorch")
            parity = _checked_parity(candidate, network, frames, "fp16", config)
        manifest = Manifest(
            kind="onnx",
            artefact_sha256=sha256_of(candidate),
            parent_sha256=checkpoint_sha256,
            checkpoint_sha256=checkpoint_sha256,
            clip_sha256=network.clip_sha256,
            trained=trained,
            model=network.config,
            preprocess=network.config.preprocess,
            inputs=(input_spec(network.config, config),),
            outputs=(output_spec(network.config, config),),
            sizes=config.sizes,
            precision=config.precision,
            opset=config.opset,
            parity=parity,
            tools={"mirrordepth-edge": __version__} | installed_versions(TOOLS),
        )
        # Before the artefact, so that an interruption leaves no artefact without its reference.
        write_reference(output, make_reference(network, frames, config.io))
        write_artefact(output, candidate.read_bytes(), manifest)
    return manifest


def _checked_parity(
    onnx_path: Path, network: DepthNetwork, frames: Sequence[Frame], precision: Precision, config: ExportConfig
) -> Parity:
    """Measure parity over all frames; the worst of the min, opt and max sizes for dynamic shapes."""
    if config.sizes is None:
        parity = measure_parity(onnx_path, network, frames, precision, config.io, config.batch)
    else:
        parity = worst_parity(
            measure_parity(onnx_path, network.at((height, width)), frames, precision, config.io, batch)
            for batch, height, width in config.sizes
        )
    check_parity(parity, precision)
    return parity


def untrained_network(preset: str, size_hw: SizeHW | None = None) -> tuple[DepthNetwork, str]:
    """Create a preset with random weights, to measure its speed without downloads.

    Returns:
        The network in eval mode, and the SHA-256 of its trainable weights.

    Raises:
        OptionError: the preset is unknown, or cannot run at this size.
    """
    from mirrordepth_edge.model.clip import RANDOM_PREFIX, tensors_sha256
    from mirrordepth_edge.model.network import create_network

    model = replace(get_preset(preset, "Use one of these names."), pretrained=f"{RANDOM_PREFIX}0")
    network = create_network(replace(model, size_hw=size_hw or model.size_hw)).eval()
    return network, tensors_sha256(network.trainable())
