"""Verify a model and print the checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mirrordepth_edge.artefact import CHECKPOINT_SUFFIX, model_path
from mirrordepth_edge.backends.registry import open_artefact, open_session
from mirrordepth_edge.commands.terminal import console, errors, print_notes, write_result
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.export.verify import Verification, check_verification
from mirrordepth_edge.export.verify import verify as run_checks
from mirrordepth_edge.machine.device import machine
from mirrordepth_edge.machine.sampler import TelemetrySampler
from mirrordepth_edge.machine.telemetry import SensorReading, Telemetry
from mirrordepth_edge.support.files import ensure_folder

REDRAW_S = 0.5


def verify_model(model: str, options: SessionOptions, soak_s: float, json_file: Path | None) -> None:
    """Verify a model, print the checks, and write them as JSON if a file was given.

    Raises:
        OptionError: The model is a checkpoint.
        GateError: A check failed.
    """
    path = model_path(model)
    if path.suffix == CHECKPOINT_SUFFIX:
        raise OptionError(
            f"{path} has no reference to compare with.",
            "A checkpoint runs in PyTorch, which is the reference for exported files.",
            f"mde export {path.name}, then mde verify {path.with_suffix('.onnx').name}",
        )
    if json_file is not None:
        ensure_folder(json_file.parent)
    artefact = open_artefact(path, trust=options.trust)
    session, manifest = open_session(artefact, options)
    assert manifest is not None, "only checkpoints have no manifest"
    with session:
        errors.print(f"{model} on {session.device} ({session.backend} {session.version}, {session.precision})")
        print_notes(session.notes)
        with TelemetrySampler() as sampler, _show_soak(soak_s) as on_soak:
            result = run_checks(session, artefact, manifest, soak_s=soak_s, on_soak=on_soak)
    telemetry = sampler.telemetry()
    _report(result, telemetry)
    header = {
        "kind": "verification",
        "model": model,
        "machine": asdict(machine()),
        "telemetry": telemetry.to_json(),
    }
    write_result(json_file, header | result.to_json())
    check_verification(result, model)
    console.print(f"{model} passed on {result.device}")


def _report(result: Verification, telemetry: Telemetry) -> None:
    for check in result.checks():
        console.print(f"{'ok  ' if check.holds else 'FAIL'}  {check.what}", style=None if check.holds else "bold red")
        console.print(f"      {check.found} (limit: {check.limit})")
    for note in result.notes:
        console.print(f"--    {note}")
    if result.soak is not None:
        for remark in (*_temperatures(telemetry), *telemetry.remarks()):
            console.print(f"note: {remark}")


def _temperatures(telemetry: Telemetry) -> Iterator[str]:
    """Yield the range of the hottest zone, including the GPU that NVML reports."""
    zones = telemetry.temperatures if isinstance(telemetry.temperatures, dict) else {}
    all_zones = {"GPU": telemetry.gpu_temperature, **zones}
    readings = {name: zone for name, zone in all_zones.items() if isinstance(zone, SensorReading)}
    if readings:
        name, hottest = max(readings.items(), key=lambda item: item[1].most)
        yield f"hottest zone {name}: {hottest.least:.0f} to {hottest.most:.0f} °C"
    else:
        yield "this machine reports no temperature"


@contextmanager
def _show_soak(seconds: float) -> Iterator[Callable[[float], None]]:
    """Show a progress bar if there is a soak; the yielded function takes the seconds passed."""
    # Redrawn between runs and at most twice a second: a refresh thread would disturb the runs.
    columns = (TextColumn("soak test"), BarColumn(), TimeRemainingColumn())
    shown = seconds > 0 and errors.is_terminal
    progress = Progress(*columns, console=errors, transient=True, auto_refresh=False, disable=not shown)
    task, drawn_s = progress.add_task("", total=seconds), monotonic()

    def on_soak(elapsed_s: float) -> None:
        nonlocal drawn_s
        if monotonic() - drawn_s > REDRAW_S:
            progress.update(task, completed=elapsed_s, refresh=True)
            drawn_s = monotonic()

    with progress:
        yield on_soak
