"""`mde export --int8` and `--sweep`: INT8 that was judged on depth."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mirrordepth_edge.errors import OptionError

if TYPE_CHECKING:
    from mirrordepth_edge.commands.export.floats import Source
    from mirrordepth_edge.config import DataConfig, QuantiseConfig, TargetConfig
    from mirrordepth_edge.export.accuracy import GateFrames
    from mirrordepth_edge.manifest import Manifest
    from mirrordepth_edge.quantise.pipeline import Fitted, Int8Quantizer


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What INT8 is calibrated and judged with, as the command line has it."""

    calib: str | None
    method: str
    limit: str
    force: bool
    data: DataConfig | None
    frames: int


def export_int8(
    source: Source,
    output: Path,
    gate: Gate,
    targets: Sequence[TargetConfig],
    *,
    on_cpu: bool,
    sweep: bool,
    pick: int | None,
) -> bool:
    """Quantise, or sweep; whether a model was written."""
    from mirrordepth_edge.commands.export.floats import fp32_file
    from mirrordepth_edge.commands.export.scratch import room_for_scratch, stages
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.quantise.calibration_set import load_calibration
    from mirrordepth_edge.quantise.pipeline import Int8Quantizer

    config = _config(gate, on_cpu)
    if gate.calib is None:
        raise OptionError(
            "INT8 needs frames to take its ranges from.",
            "Ranges of real pictures decide what depth is left; random ones are never used.",
            "mde calibrate --from FOLDER_OR_VIDEO_OR_CAMERA -o mine, then --calib mine",
        )
    calibration = load_calibration(gate.calib)
    if output.exists() and Path(source.model).exists() and output.samefile(source.model):
        why = "INT8 is made of it, and cannot be undone."
        raise OptionError(f"{output} would be overwritten by what is made of it.", why, "-o another.onnx")
    with room_for_scratch(), tempfile.TemporaryDirectory() as scratch, stages() as progress:
        folder = Path(scratch)
        fp32, parent = fp32_file(source, folder, lambda stage: progress.stage(stage, 0))
        workshop = Int8Quantizer(
            fp32=fp32,
            calibration=calibration,
            config=config,
            folder=folder,
            labelled=None if gate.data is None else _labelled(gate.data, gate.frames, fp32.manifest),
            progress=progress,
        )
        if (problem := workshop.domain_problem) is not None:
            console.print(f"warning: {problem}", style="yellow")
        if sweep or pick is not None:
            from mirrordepth_edge.commands.export.sweep import run_sweep

            fitted = run_sweep(workshop, output, targets, pick)
            if fitted is None:
                return False
        else:
            fitted = workshop.fit()
        written = workshop.write(output, fitted, parent)
    _report(output, workshop, fitted, written)
    return True


def _config(gate: Gate, on_cpu: bool) -> QuantiseConfig:
    from mirrordepth_edge.config import CalibrationMethod, QuantiseConfig
    from mirrordepth_edge.support.units import parse_share

    if gate.method not in get_args(CalibrationMethod):
        methods = ", ".join(get_args(CalibrationMethod))
        raise OptionError(f"--calib-method {gate.method!r} is unknown.", f"It is one of {methods}.", "percentile")
    return QuantiseConfig(
        scheme="cpu" if on_cpu else "gpu",
        method=gate.method,  # type: ignore[arg-type]
        max_loss=parse_share(gate.limit, "--max-absrel-loss"),
        force=gate.force,
    )


def _labelled(config: DataConfig, most: int, manifest: Manifest) -> GateFrames:
    from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
    from mirrordepth_edge.data.sample import Selected
    from mirrordepth_edge.evaluation.evaluate import Protocol, check_samples
    from mirrordepth_edge.export.accuracy import GateFrames

    dataset, kind = choose_dataset(config, "test"), kind_of(config)
    count = min(most, len(dataset))
    chosen = Selected(of=dataset, indices=tuple(len(dataset) * place // count for place in range(count)))
    limits_m = depth_limits_on(kind, manifest.model.depth_limits_m)
    protocol = Protocol(limits_m=limits_m, crop=CONVENTIONS[kind].crop)
    check_samples((chosen[place] for place in range(len(chosen))), protocol)
    return GateFrames(samples=chosen, protocol=protocol, data=f"{config.root} ({protocol})")


def _report(output: Path, workshop: Int8Quantizer, fitted: Fitted, written: Manifest) -> None:
    from mirrordepth_edge.commands.export.floats import report
    from mirrordepth_edge.commands.terminal import console

    report(output, written)
    console.print(f"accuracy: {fitted.accuracy}")
    console.print(
        f"INT8: {len(fitted.nodes)} of {len(workshop.nodes)} layers, calibrated on {workshop.statistics.frames} frames "
        f"of {workshop.calibration.name}, ranges by {workshop.config.method}"
    )
    if fitted.fp_fallback:
        console.print("kept in floating point, with the depth error of each in INT8 alone:")
        for group in fitted.fp_fallback:
            console.print(f"  {workshop.sensitivity[group]:8.2%}  {group}, {len(workshop.groups[group])} layers")
    if written.quantisation is not None and written.quantisation.forced:
        console.print("warning: the accuracy gate failed; written because of --force, and marked so", style="yellow")
