"""`mde verify`: check that a model computes correct depth on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mirrordepth_edge.artefact import CHECKPOINT_SUFFIX, model_path
from mirrordepth_edge.backends.registry import open_artefact, open_session
from mirrordepth_edge.commands.parameters import Backend, Device, NetworkSize, Trust, session_options
from mirrordepth_edge.commands.terminal import console, errors
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.export.verify import Verification, check_verification
from mirrordepth_edge.export.verify import verify as run_checks
from mirrordepth_edge.machine.device import machine
from mirrordepth_edge.machine.sampler import TelemetrySampler
from mirrordepth_edge.machine.telemetry import SensorReading, Telemetry
from mirrordepth_edge.support.files import ensure_folder, write_json

REDRAW_S = 0.5


def verify(
    model: Annotated[str, typer.Argument(help="A .plan or .onnx file, nano or nano.fp16.")],
    soak: Annotated[float, typer.Option(min=0, metavar="MINUTES", help="Then run it repeatedly for this long.")] = 0.0,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    trust: Trust = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
) -> None:
    """Check that a model computes correct depth on this device.

    Compares with the PyTorch depth stored at export and with the ONNX file on the CPU, looks for NaN, and checks that
    ten runs, and --soak minutes of runs, give the same bits. Exits with 3 if a check fails.
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
    artefact = open_artefact(path, trust=trust)
    session, manifest = open_session(
        artefact, session_options(device, backend=backend, network_size=network_size, trust=trust)
    )
    assert manifest is not None, "only checkpoints have no manifest"
    with session:
        errors.print(f"{model} on {session.device} ({session.backend} {session.version}, {session.precision})")
        for note in getattr(session, "notes", ()):
            errors.print(f"note: {note}", style="yellow")
        with TelemetrySampler() as sampler, _show_soak(soak * 60) as on_soak:
            result = run_checks(session, artefact, manifest, soak_s=soak * 60, on_soak=on_soak)
    telemetry = sampler.telemetry()
    _report(result, telemetry)
    if json_file is not None:
        header = {
            "kind": "verification",
            "model": model,
            "machine": asdict(machine()),
            "telemetry": telemetry.to_json(),
        }
        write_json(json_file, header | result.to_json())
        console.print(f"wrote {json_file}")
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
