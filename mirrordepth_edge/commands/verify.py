"""`mde verify`: whether a model gives the right depth on this device, every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.engine_options import Trust
from mirrordepth_edge.commands.parameters import Backend, Device, session_options
from mirrordepth_edge.commands.sizes import NetworkSize

if TYPE_CHECKING:
    from mirrordepth_edge.export.verify import Verification
    from mirrordepth_edge.machine.telemetry import Telemetry

REDRAW_S = 0.5


def verify(
    model: Annotated[str, typer.Argument(help="A .plan or .onnx file, nano or nano.fp16.")],
    soak: Annotated[float, typer.Option(min=0, metavar="MINUTES", help="Then run it for so long.")] = 0.0,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    trust: Trust = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found.")] = None,
) -> None:
    """Check that a model gives the right depth on this device, every time.

    Against PyTorch's depth that was stored at export, and against its ONNX file on the CPU; no NaN; the same bits in
    ten repeats, and for --soak minutes. Exits with 3 if one of these fails.
    """
    from dataclasses import asdict, replace

    from mirrordepth_edge.artefact import model_path
    from mirrordepth_edge.backends.registry import CHECKPOINT_SUFFIX, open_session
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.export.verify import check_verification
    from mirrordepth_edge.export.verify import verify as look
    from mirrordepth_edge.machine.device import machine
    from mirrordepth_edge.machine.sampler import TelemetrySampler
    from mirrordepth_edge.support.files import ensure_folder, write_json

    path = model_path(model)
    if path.suffix == CHECKPOINT_SUFFIX:
        raise OptionError(
            f"{path} has nothing to be held to.",
            "A checkpoint runs in PyTorch, which is what others are held to.",
            f"mde export {path.name}, then mde verify {path.with_suffix('.onnx').name}",
        )
    if json_file is not None:
        ensure_folder(json_file.parent)
    session, manifest = open_session(
        path, replace(session_options(device, backend=backend, network_size=network_size), trust=trust)
    )
    assert manifest is not None, "every model but a checkpoint has one"
    with session:
        errors.print(f"{model} on {session.device} ({session.backend} {session.version}, {session.precision})")
        for note in getattr(session, "notes", ()):
            errors.print(f"note: {note}", style="yellow")
        with TelemetrySampler() as sampler, _soaking(soak * 60) as on_soak:
            found = look(session, path, manifest, soak_s=soak * 60, on_soak=on_soak)
    telemetry = sampler.telemetry()
    _report(found, telemetry)
    if json_file is not None:
        told = {"kind": "verification", "model": model, "machine": asdict(machine()), "telemetry": telemetry.to_json()}
        write_json(json_file, told | found.to_json())
        console.print(f"wrote {json_file}")
    check_verification(found, model)
    console.print(f"{model} holds on {found.device}")


def _report(found: Verification, telemetry: Telemetry) -> None:
    from mirrordepth_edge.commands.terminal import console

    for check in found.checks():
        console.print(f"{'ok  ' if check.holds else 'FAIL'}  {check.what}", style=None if check.holds else "bold red")
        console.print(f"      {check.found} (limit: {check.limit})")
    for note in found.notes:
        console.print(f"--    {note}")
    if found.soak is not None:
        for remark in (*_temperatures(telemetry), *telemetry.remarks()):
            console.print(f"note: {remark}")


def _temperatures(telemetry: Telemetry) -> Iterator[str]:
    """The hottest zone, and NVML's GPU where there is one."""
    from mirrordepth_edge.machine.telemetry import SensorReading

    zones = telemetry.temperatures if isinstance(telemetry.temperatures, dict) else {}
    named = {"GPU": telemetry.gpu_temperature, **zones}
    readings = {name: each for name, each in named.items() if isinstance(each, SensorReading)}
    if readings:
        name, hottest = max(readings.items(), key=lambda item: item[1].most)
        yield f"hottest was {name}: {hottest.most:.0f} °C at most, {hottest.least:.0f} °C at least"
    else:
        yield "no temperature is told here"


@contextmanager
def _soaking(seconds: float) -> Iterator[Callable[[float], None]]:
    """A bar that is drawn between runs and at most twice a second; none where nothing soaks."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from mirrordepth_edge.commands.terminal import errors

    columns = (TextColumn("running again and again"), BarColumn(), TimeRemainingColumn())
    shown = seconds > 0 and errors.is_terminal
    progress = Progress(*columns, console=errors, transient=True, auto_refresh=False, disable=not shown)
    task, drawn_s = progress.add_task("", total=seconds), monotonic()

    def on_soak(passed_s: float) -> None:
        nonlocal drawn_s
        if monotonic() - drawn_s > REDRAW_S:
            progress.update(task, completed=passed_s, refresh=True)
            drawn_s = monotonic()

    with progress:
        yield on_soak
