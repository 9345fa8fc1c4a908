"""`mde export --int8` and `--sweep`: calibrate, quantise, and check accuracy."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mirrordepth_edge.commands.export.floats import get_fp32_model, report
from mirrordepth_edge.commands.export.request import ExportRequest
from mirrordepth_edge.commands.export.sweep import run_sweep
from mirrordepth_edge.commands.terminal import console, progress_bar
from mirrordepth_edge.config import DataConfig, QuantiseConfig, TargetConfig
from mirrordepth_edge.data.choose import CONVENTIONS, choose_dataset, depth_limits_on, kind_of
from mirrordepth_edge.data.sample import Selected
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.evaluation.evaluate import Protocol, check_samples
from mirrordepth_edge.export.accuracy import GateFrames
from mirrordepth_edge.manifest import Manifest
from mirrordepth_edge.quantise.calibration_set import CalibrationSet, load_calibration
from mirrordepth_edge.quantise.pipeline import Fitted, Int8Quantizer, ProgressCallback
from mirrordepth_edge.support.units import parse_share


def export_int8(request: ExportRequest, targets: Sequence[TargetConfig], *, for_cpu: bool) -> bool:
    """Quantise a model, or sweep.

    Returns:
        Whether a model was written; a sweep writes only its results.
    """
    options, output = request.int8, request.output
    config = QuantiseConfig(
        scheme="cpu" if for_cpu else "gpu",
        method=options.method,
        max_loss=parse_share(options.max_loss, "--max-absrel-loss"),
        force=options.force,
    )
    calibration = _load_calibration(request.calib)
    _refuse_overwriting(Path(request.source.model), output)
    with _report_full_disk(), tempfile.TemporaryDirectory() as scratch, _show_stages() as progress:
        folder = Path(scratch)
        fp32, parent = get_fp32_model(request.source, folder, lambda stage: progress.stage(stage, 0))
        quantizer = Int8Quantizer(
            fp32=fp32,
            calibration=calibration,
            config=config,
            folder=folder,
            labelled=None if options.data is None else _gate_frames(options.data, options.gate_frames, fp32.manifest),
            progress=progress,
        )
        if (problem := quantizer.domain_problem) is not None:
            console.print(f"warning: {problem}", style="yellow")
        fitted = run_sweep(quantizer, output, targets, options.pick) if options.sweeps else quantizer.fit()
        if fitted is None:
            return False
        written = quantizer.write(output, fitted, parent)
    _report(output, quantizer, fitted, written)
    return True


def _load_calibration(name: str | None) -> CalibrationSet:
    if name is None:
        raise OptionError(
            "INT8 needs calibration images.",
            "The ranges of activations come from real images of the camera; random input would ruin accuracy.",
            "mde calibrate --from FOLDER_OR_VIDEO_OR_CAMERA -o mine, then --calib mine",
        )
    return load_calibration(name)


def _refuse_overwriting(model: Path, output: Path) -> None:
    if output.exists() and model.exists() and output.samefile(model):
        why = "It is the input, and quantisation cannot be undone."
        raise OptionError(f"{output} would be overwritten.", why, "-o another.onnx")


def _gate_frames(config: DataConfig, max_frames: int, manifest: Manifest) -> GateFrames:
    """Return evenly spaced samples of the data that the accuracy gate runs on."""
    dataset, kind = choose_dataset(config, "test"), kind_of(config)
    count = min(max_frames, len(dataset))
    samples = Selected(of=dataset, indices=tuple(len(dataset) * i // count for i in range(count)))
    limits_m = depth_limits_on(kind, manifest.model.depth_limits_m)
    protocol = Protocol(limits_m=limits_m, crop=CONVENTIONS[kind].crop)
    check_samples((samples[i] for i in range(len(samples))), protocol)
    return GateFrames(samples=samples, protocol=protocol, data=f"{config.root} ({protocol})")


def _report(output: Path, quantizer: Int8Quantizer, fitted: Fitted, written: Manifest) -> None:
    report(output, written)
    console.print(f"accuracy: {fitted.accuracy}")
    console.print(
        f"INT8: {len(fitted.nodes)} of {len(quantizer.nodes)} layers, calibrated on {quantizer.statistics.frames} "
        f"frames of {quantizer.calibration.name} ({quantizer.config.method})"
    )
    if fitted.fp_fallback:
        console.print("kept in floating point, with the error that quantising each would add:")
        for group in fitted.fp_fallback:
            console.print(f"  {quantizer.sensitivity[group]:8.2%}  {group}, {len(quantizer.groups[group])} layers")
    if written.quantisation is not None and written.quantisation.forced:
        console.print("warning: the accuracy gate failed; written because of --force, and marked so", style="yellow")


@contextmanager
def _report_full_disk() -> Iterator[None]:
    """Turn a full disk into an `InputError`: candidates and activations need temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"No space left in {tempfile.gettempdir()}.",
            f"{error.strerror}: quantisation keeps candidates and activations there.",
            "TMPDIR=/another/folder mde export …",
        ) from error


@contextmanager
def _show_stages() -> Iterator[ProgressCallback]:
    """Show one progress bar, which is reset for each stage."""
    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)
        yield ProgressCallback(
            stage=lambda name, steps: bar.reset(task, description=name, total=steps or None),
            step=lambda: bar.advance(task),
        )
