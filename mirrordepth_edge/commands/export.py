"""`mde export`: checkpoint to ONNX, proven against PyTorch, and on to an engine where one can be built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import NANO, ClipWeights, Size, parse_size

if TYPE_CHECKING:
    from mirrordepth_edge.config import ExportConfig
    from mirrordepth_edge.manifest import Manifest


def export(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors checkpoint, or nano, which ships with mde.")] = NANO,
    fp32: Annotated[bool, typer.Option("--fp32", help="Everything in FP32 (the default without --target).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16, but LayerNormalization and the metric head.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file to write.")] = Path("model.onnx"),
    size: Size = None,
    io: Annotated[str, typer.Option(help="uint8: RGB [1,H,W,3]; float: normalised [1,3,H,W].")] = "uint8",
    target: Annotated[str | None, typer.Option(help="Where it will run, such as cpu, orin-nano, rtx-ada.")] = None,
    frames: Annotated[Path | None, typer.Option(help="Picture or folder for parity and FP16 ranges.")] = None,
    clip_weights: ClipWeights = None,
    untrained: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Export a preset with random weights, to measure speed only.")
    ] = None,
) -> None:
    """Make ONNX of a checkpoint, and an engine.

    The text tower is gone from the file: the mirror's text feature is a constant, folded into the
    decoder. Nothing is written unless the file's depth is the PyTorch model's. For FP16 or a GPU
    target the engine is built too, where this machine can.
    """
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.config import ExportConfig
    from mirrordepth_edge.deploy.build import load_targets
    from mirrordepth_edge.deploy.export import require_export_packages
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.files import ensure_folder, require_suffix

    if fp32 and fp16:
        raise OptionError("--fp32 and --fp16 exclude each other.", "A file has one precision.", "Give one of them.")
    if io not in ("uint8", "float"):
        raise OptionError(f"--io {io!r} is unknown.", "It is uint8 or float.", "--io uint8")
    if untrained is not None and (checkpoint != NANO or clip_weights is not None):
        raise OptionError("--untrained takes no weights.", "Its own are random.", "Leave one of the two out.")
    recipes = load_targets(target) if target else ()
    default = "fp32" if target is None else recipes[0].precision if recipes else "fp16"
    precision = "fp16" if fp16 else "fp32" if fp32 else default
    require_suffix(output, (".onnx",), "an ONNX file")
    config = ExportConfig(precision=precision, size_hw=parse_size(size) if size else None, io=io)  # type: ignore[arg-type]
    require_export_packages()
    ensure_folder(output.parent)
    with errors.status("loading the model") as status:
        manifest = _produce(checkpoint, untrained, config, output, frames, clip_weights, status.update)
    _report(output, manifest)
    if recipes and all(recipe.backend == "onnxruntime" for recipe in recipes):
        return
    if target is not None or precision == "fp16":
        _build(output, target)
    else:
        console.print(f"engine: not built for FP32; mde build {output} builds one")


def _produce(
    checkpoint: str,
    untrained: str | None,
    config: ExportConfig,
    output: Path,
    frames: Path | None,
    clip_weights: Path | None,
    on_stage: Callable[[str], None],
) -> Manifest:
    from mirrordepth_edge.deploy.parity import reference_frames
    from mirrordepth_edge.deploy.produce import produce_onnx, untrained_network
    from mirrordepth_edge.files import sha256_of
    from mirrordepth_edge.runtime import NANO_CHECKPOINT

    pictures = reference_frames(frames)
    if untrained is not None:
        network, digest = untrained_network(untrained, config.size_hw)
    else:
        from mirrordepth_edge.core.checkpoint import load_checkpoint

        path = NANO_CHECKPOINT if checkpoint == NANO else Path(checkpoint)
        network, _ = load_checkpoint(path, clip_weights=clip_weights, size_hw=config.size_hw)
        digest = sha256_of(path)
    return produce_onnx(
        network,
        config,
        output,
        pictures,
        checkpoint_sha256=digest,
        trained=untrained is None,
        on_stage=on_stage,
    )


def _report(output: Path, manifest: Manifest) -> None:
    from mirrordepth_edge.commands.terminal import console

    height, width = manifest.preprocess.size_hw
    parity = manifest.parity
    console.print(
        f"wrote {output}  {output.stat().st_size / 1e6:.1f} MB, {manifest.precision.upper()}, {width}x{height} pixels"
    )
    console.print(
        f"parity: {parity.frames} frames against PyTorch, worst pixel {parity.max_relative:.1e}, "
        f"mean {parity.mean_relative:.1e} relative (gate: {parity.limit})"
    )
    if not manifest.trained:
        console.print("note: the weights are random; this file is for measuring speed, its depth means nothing")


def _build(onnx_path: Path, target: str | None) -> None:
    """Build the engine, or say plainly why not and what to type where; that is no failure of export."""
    from mirrordepth_edge.commands.build import build_and_report
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.errors import MissingError

    try:
        build_and_report(onnx_path, onnx_path.with_suffix(".plan"), target)
    except MissingError as error:
        console.print(f"engine: not built. {error.what} {error.why}")
        console.print(f"  next: {error.cure}")
