"""`mde export` in FP32 and FP16, and what it shares with INT8: loading, telling, building."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mirrordepth_edge.artefact import Artefact
    from mirrordepth_edge.config import InputKind, Precision, SizeHW, SizeRange
    from mirrordepth_edge.imaging.preprocess import Frame
    from mirrordepth_edge.manifest import Manifest


CAST_FRAMES = 8
"""Of a calibration set, so many are looked at for FP16."""


class Source(NamedTuple):
    """What is exported, as the command line names it."""

    model: str
    untrained: str | None
    clip_weights: Path | None
    frames: Path | None
    size_hw: SizeHW | None
    io: InputKind
    sizes: SizeRange | None = None
    """Those that one file shall take."""
    calib: str | None = None
    """For FP16: a set whose frames join the others."""


def export_onnx(source: Source, output: Path, precision: Precision) -> None:
    """Export, and tell what came of it."""
    from mirrordepth_edge.backends.registry import ONNX_SUFFIX
    from mirrordepth_edge.commands.terminal import errors
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.export.trace import require_export_packages

    if source.model.endswith(ONNX_SUFFIX):
        raise OptionError(
            f"{source.model} is ONNX already.",
            "FP32 and FP16 are exported of a checkpoint.",
            "Name the checkpoint; --int8 makes INT8 of an FP32 ONNX file.",
        )
    require_export_packages()
    with errors.status("loading the model") as status:
        manifest = produce(source, output, precision, status.update)
    report(output, manifest)


def produce(source: Source, output: Path, precision: Precision, on_stage: Callable[[str], object]) -> Manifest:
    """Load the checkpoint, or make random weights, and export."""
    from mirrordepth_edge.artefact import NANO_CHECKPOINT, SHIPPED
    from mirrordepth_edge.config import ExportConfig
    from mirrordepth_edge.export.parity import reference_frames
    from mirrordepth_edge.export.produce import produce_onnx, untrained_network
    from mirrordepth_edge.support.files import sha256_of

    pictures = [*reference_frames(source.frames), *_calibration_frames(source.calib)]
    if source.untrained is not None:
        network, digest = untrained_network(source.untrained, source.size_hw)
    else:
        from mirrordepth_edge.model.checkpoint import load_checkpoint

        path = NANO_CHECKPOINT if source.model in SHIPPED else Path(source.model)
        network, _ = load_checkpoint(path, clip_weights=source.clip_weights, size_hw=source.size_hw)
        digest = sha256_of(path)
    return produce_onnx(
        network,
        ExportConfig(precision=precision, size_hw=source.size_hw, sizes=source.sizes, io=source.io),
        output,
        pictures,
        checkpoint_sha256=digest,
        trained=source.untrained is None,
        on_stage=on_stage,
    )


def _calibration_frames(calib: str | None) -> list[Frame]:
    """Some of a calibration set, whose activations decide too what stays FP32."""
    if calib is None:
        return []
    from mirrordepth_edge.quantise.calibration_set import load_calibration

    calibration = load_calibration(calib)
    return list(calibration.some_frames(range(0, calibration.count, -(-calibration.count // CAST_FRAMES))))


def fp32_file(source: Source, folder: Path, on_stage: Callable[[str], object]) -> tuple[Artefact, str]:
    """The FP32 file that INT8 is made of: the one that was named or ships, else one exported to `folder`.

    Returns:
        The file, and the SHA-256 to record as the origin of the INT8 file.
    """
    from mirrordepth_edge.artefact import SHIPPED, Artefact
    from mirrordepth_edge.backends.registry import ONNX_SUFFIX
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.export.trace import require_export_packages

    as_it_ships = source.model in SHIPPED and (source.untrained, source.size_hw, source.io) == (None, None, "uint8")
    if as_it_ships or source.model.endswith(ONNX_SUFFIX):
        artefact = Artefact.open(source.model)
        path, manifest = artefact.path, artefact.manifest
        if source.size_hw not in (None, manifest.preprocess.size_hw) or source.sizes not in (None, manifest.sizes):
            raise OptionError(f"{path} has its size.", "It was decided at its export.", "Name its checkpoint.")
        return artefact, artefact.sha256
    require_export_packages()
    path = folder / "fp32.onnx"
    manifest = produce(source, path, "fp32", on_stage)
    return Artefact(path=path, kind="onnx", sidecar=manifest), manifest.parent_sha256


def report(output: Path, manifest: Manifest) -> None:
    """What was written, and how it was proven."""
    from mirrordepth_edge.commands.terminal import console

    height, width = manifest.preprocess.size_hw
    parity = manifest.parity
    sizes = f"{width}x{height} pixels" if manifest.sizes is None else f"for {manifest.sizes} (height x width) pixels"
    console.print(f"wrote {output}  {output.stat().st_size / 1e6:.1f} MB, {manifest.precision.upper()}, {sizes}")
    console.print(
        f"parity: {parity.frames} frames against {'PyTorch' if manifest.quantisation is None else 'FP32'}, worst pixel "
        f"{parity.max_relative:.1e}, mean {parity.mean_relative:.1e} relative (gate: {parity.limit})"
    )
    if not manifest.trained:
        console.print("note: the weights are random; this file is for measuring speed, its depth means nothing")


def serve(model: Path, repository: Path) -> None:
    """Put an ONNX file or a plan where NVIDIA Triton finds it."""
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.engines.triton import write_triton_repository

    console.print(f"wrote {write_triton_repository(model, repository)}, for NVIDIA Triton")


def build_if_possible(onnx_path: Path, target: str | None) -> None:
    """Build the engine, or say plainly why not and what to type where; that is no failure of export."""
    from mirrordepth_edge.commands.build import build_and_report
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.errors import MissingError

    try:
        build_and_report(onnx_path, onnx_path.with_suffix(".plan"), target)
    except MissingError as error:
        console.print(f"engine: not built. {error.what} {error.why}")
        console.print(f"  next: {error.cure}")
