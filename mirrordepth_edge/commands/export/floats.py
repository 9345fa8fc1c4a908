"""`mde export` in FP32 and FP16, and the FP32 model that INT8 starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mirrordepth_edge.artefact import NANO_CHECKPOINT, ONNX_SUFFIX, SHIPPED, Artefact
from mirrordepth_edge.commands.export.request import Source
from mirrordepth_edge.commands.terminal import console, errors
from mirrordepth_edge.config import ExportConfig, Precision
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.export.produce import produce_onnx, untrained_network
from mirrordepth_edge.export.trace import require_export_packages
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.manifest import Manifest
from mirrordepth_edge.quantise.calibration_set import load_calibration
from mirrordepth_edge.support.files import sha256_of

CALIBRATION_FRAMES = 8
"""Frames of a calibration set whose activations FP16 takes into account."""


def export_float(source: Source, output: Path, precision: Precision, calib: str | None) -> None:
    """Export a checkpoint in FP32 or FP16, and print size and parity.

    Args:
        calib: Calibration set whose frames join `source.frames`.
    """
    if source.model.endswith(ONNX_SUFFIX):
        raise OptionError(
            f"{source.model} is an ONNX file already.",
            "FP32 and FP16 are exported from a checkpoint.",
            "Give the checkpoint, or --int8 to quantise the FP32 ONNX file.",
        )
    require_export_packages()
    frames = [] if calib is None else _calibration_frames(calib)
    with errors.status("loading the model") as status:
        manifest = export_checkpoint(source, output, precision, status.update, frames)
    report(output, manifest)


def export_checkpoint(
    source: Source,
    output: Path,
    precision: Precision,
    on_stage: Callable[[str], object],
    calibration_frames: list[Frame] | None = None,
) -> Manifest:
    """Load a checkpoint, or make a network with random weights, and export it."""
    frames = [*reference_frames(source.frames), *(calibration_frames or ())]
    if source.untrained is not None:
        network, digest = untrained_network(source.untrained, source.size_hw)
    else:
        # Imports PyTorch; `require_export_packages` has passed.
        from mirrordepth_edge.model.checkpoint import load_checkpoint

        path = NANO_CHECKPOINT if source.model in SHIPPED else Path(source.model)
        network, _ = load_checkpoint(path, clip_weights=source.clip_weights, size_hw=source.size_hw)
        digest = sha256_of(path)
    return produce_onnx(
        network,
        ExportConfig(precision=precision, size_hw=source.size_hw, sizes=source.sizes, io=source.io),
        output,
        frames,
        checkpoint_sha256=digest,
        trained=source.untrained is None,
        on_stage=on_stage,
    )


def get_fp32_model(source: Source, folder: Path, on_stage: Callable[[str], object]) -> tuple[Artefact, str]:
    """Return the FP32 ONNX file to quantise: the given or shipped one, else one exported to `folder`.

    Returns:
        The file, and the hash to record as the parent of the INT8 file.
    """
    is_shipped = source.model in SHIPPED and (source.untrained, source.size_hw, source.io) == (None, None, "uint8")
    if is_shipped or source.model.endswith(ONNX_SUFFIX):
        artefact = Artefact.open(source.model)
        path, manifest = artefact.path, artefact.manifest
        if source.size_hw not in (None, manifest.preprocess.size_hw) or source.sizes not in (None, manifest.sizes):
            raise OptionError(f"{path} has a fixed size.", "It was set at export.", "Give the checkpoint instead.")
        return artefact, artefact.sha256
    require_export_packages()
    path = folder / "fp32.onnx"
    manifest = export_checkpoint(source, path, "fp32", on_stage)
    return Artefact(path=path, kind="onnx", sidecar=manifest), manifest.parent_sha256


def report(output: Path, manifest: Manifest) -> None:
    """Print size, precision and parity of an exported file."""
    height, width = manifest.preprocess.size_hw
    parity = manifest.parity
    sizes = f"{width}x{height} pixels" if manifest.sizes is None else f"for {manifest.sizes} (height x width) pixels"
    reference = "PyTorch" if manifest.quantisation is None else "FP32"
    console.print(f"wrote {output}  {output.stat().st_size / 1e6:.1f} MB, {manifest.precision.upper()}, {sizes}")
    console.print(
        f"parity: {parity.frames} frames against {reference}, worst pixel {parity.max_relative:.1e}, "
        f"mean {parity.mean_relative:.1e} relative (gate: {parity.limit})"
    )
    if not manifest.trained:
        console.print("note: the weights are random; use this file for speed only, its depth is meaningless")


def _calibration_frames(calib: str) -> list[Frame]:
    """Return evenly spaced frames of a calibration set."""
    calibration = load_calibration(calib)
    return list(calibration.some_frames(range(0, calibration.count, -(-calibration.count // CALIBRATION_FRAMES))))
