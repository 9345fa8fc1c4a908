"""The HTML page of a self-test, to be checked before it is shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mirrordepth_edge.bench.selftest_result import (
    ROW_HEADER,
    STEPS,
    Device,
    Figure,
    SelfTest,
    Step,
    StepName,
    SubjectResult,
)
from mirrordepth_edge.report.html import render_page
from mirrordepth_edge.report.tables import Table

KEY_FIGURES: dict[StepName, tuple[str, str]] = {
    "make": ("size", "size"),
    "build": ("build", "took"),
    "bench": ("p50", "p50"),
    "stream": ("age p50", "age"),
    "soak": ("runs", "runs"),
}
"""The figure shown for a step, and its label."""
NOTHING = "–"
NO_REASON = "No reason was reported."


@dataclass(frozen=True, kw_only=True)
class Head:
    """The headline of a subject."""

    figure: str
    what: str
    where: str
    more: str
    colour: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A step in the table of outcomes."""

    outcome: str
    figure: str


def selftest_page(result: SelfTest, *, command: str = "") -> str:
    """Render a self-test as one HTML file without external resources.

    Args:
        result: without personal data, as `bench.selftest_result.anonymise` returns it.
        command: what was run; left out if empty.
    """
    return render_page(
        "selftest.html.j2",
        result=result,
        verdict=verdict(result),
        heads=[_head(tested) for tested in result.tested if tested.backend is not None],
        steps=STEPS,
        outcomes=[(str(tested.subject), [_cell(tested.step(name)) for name in STEPS]) for tested in result.tested],
        failures=list(_failures(result)),
        skips=_skips(result),
        rows=Table(header=ROW_HEADER, rows=tuple(result.rows())),
        numbers=[place for place, heading in enumerate(ROW_HEADER) if heading.endswith("(ms)")],
        notes=_notes(result),
        machine=list(_machine(result.device)),
        figures=[(str(tested.subject), _figures(tested)) for tested in result.tested if tested.backend is not None],
        command=command,
    )


def verdict(result: SelfTest) -> str:
    """Summarise the outcome in a sentence."""
    failed = [str(tested.subject) for tested in result.tested if tested.outcome == "failed"]
    passed = [str(tested.subject) for tested in result.tested if tested.outcome == "passed"]
    if failed:
        return f"Failed: {', '.join(failed)}." + (f" Passed: {', '.join(passed)}." if passed else "")
    if result.exit_code:
        return "No engine was run" + (f", only ONNX files: {', '.join(passed)} passed." if passed else ".")
    return f"All passed: {', '.join(passed)}."


def _head(tested: SubjectResult) -> Head:
    p50, p99 = (tested.figure("bench", name) for name in ("p50", "p99"))
    age = tested.figure("stream", "age p50")
    more = [f"p99 {_number(p99)} ms"] if p99 is not None else []
    more += [f"depth is {_number(age)} ms old with a 30 fps camera"] if age is not None else []
    return Head(
        figure="failed" if tested.outcome == "failed" else f"{_number(p50)} ms" if p50 is not None else "not timed",
        what=str(tested.subject),
        where=f"{tested.backend} {tested.backend_version} on {tested.device}",
        more="; ".join(more),
        colour=1 if tested.outcome == "failed" else 0,
    )


def _cell(step: Step | None) -> Cell:
    if step is None or step.outcome == "skipped":
        return Cell(outcome=NOTHING, figure="")
    if step.outcome == "failed":
        return Cell(outcome="failed", figure="")
    if step.name == "verify":  # one figure for each reference, named after it
        means = [figure.value for name, figure in step.figures.items() if name.startswith("mean relative")]
        return Cell(outcome="passed", figure=f"mean {max(means):.1e}" if means else "")
    name, word = KEY_FIGURES[step.name]
    figure = step.figures.get(name)
    return Cell(outcome="passed", figure="" if figure is None else f"{word} {_with_unit(figure)}")


def _failures(result: SelfTest) -> Iterator[tuple[str, str]]:
    for tested in result.tested:
        for step in tested.steps:
            if step.outcome == "failed":
                yield f"{tested.subject}, {step.name}", step.reason or NO_REASON


def _skips(result: SelfTest) -> list[tuple[str, str]]:
    """Reasons with what was skipped for each, without the steps that needed another step."""
    skipped: dict[str, list[str]] = {}
    for tested in result.tested:
        for step in tested.steps:
            if step.outcome == "skipped" and not (step.reason or "").endswith("did not pass"):
                what = str(tested.subject) if step.name == "make" else f"{tested.subject}, {step.name}"
                skipped.setdefault(step.reason or NO_REASON, []).append(what)
    return [(reason, "; ".join(whats)) for reason, whats in skipped.items()]


def _notes(result: SelfTest) -> list[tuple[str, list[str]]]:
    """Subjects with the notes of their steps."""
    return [
        (str(tested.subject), notes)
        for tested in result.tested
        if (notes := [f"{step.name}: {note}" for step in tested.steps for note in step.notes])
    ]


def _figures(tested: SubjectResult) -> Table:
    rows = tuple(
        (f"{step.name}: {name}", _with_unit(figure)) for step in tested.steps for name, figure in step.figures.items()
    )
    return Table(header=("figure", "value"), rows=rows)


def _machine(device: Device) -> Iterator[tuple[str, str]]:
    """Labels and values, without the unknown ones."""
    yield "device", device.name
    for gpu in device.gpus:
        yield "GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_mib} MiB, CUDA {gpu.cuda}"
    yield "CPU", f"{device.cpu}, {device.cores} cores"
    memory = None if device.memory_mib is None else f"{device.memory_mib} MiB"
    facts = {
        "memory": memory,
        "system": f"{device.system}, {device.architecture}",
        "JetPack": device.jetpack,
        "Jetson Linux": device.l4t,
        "NVIDIA driver": device.driver,
        "CUDA toolkit": device.cuda_toolkit,
        "TensorRT package": device.tensorrt_package,
        "power mode": device.power_mode,
        "clocks": "; ".join(device.clocks),
        "CPU governor": device.governor,
        "Python": device.python,
        "backends": ", ".join(f"{name} {version}" for name, version in device.runtimes.items()),
    }
    yield from ((label, value) for label, value in facts.items() if value)
    yield from ((f"no {name}", reason) for name, reason in device.absent.items())
    yield "packages", ", ".join(f"{name} {version}" for name, version in device.packages.items())


def _with_unit(figure: Figure) -> str:
    return f"{_number(figure.value)}\N{NO-BREAK SPACE}{figure.unit}".rstrip("\N{NO-BREAK SPACE}")


def _number(value: float) -> str:
    """Format with three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-2 else f"{value:.1e}"
