"""The HTML page of a self-test, to be checked before it is shared."""

from __future__ import annotations

from collections.abc import Iterator

from mirrordepth_edge.bench.selftest_result import STEPS, Device, Figure, SelfTest, Step, StepName, SubjectResult
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
ROW_HEADER = ("device", "software", "model", "passed", "p50 (ms)", "age p50 (ms)", "tested with")


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
        failures=[
            (f"{tested.subject}, {step.name}", step.reason)
            for tested in result.tested
            for step in tested.steps
            if step.outcome == "failed"
        ],
        skips=_skips(result),
        rows=Table(header=ROW_HEADER, rows=tuple(support_rows(result))),
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


def support_rows(result: SelfTest) -> list[tuple[str, ...]]:
    """Rows of the support matrix under `ROW_HEADER`, one for each subject that ran."""
    return [
        (
            result.device.name,
            result.device.software,
            f"{tested.subject} in {tested.backend or 'nothing'}",
            ", ".join(
                step.name if step.outcome == "passed" else f"{step.name} failed"
                for step in tested.steps
                if step.outcome != "skipped"
            ),
            _ms(tested.figure("bench", "p50")),
            _ms(tested.figure("stream", "age p50")),
            f"{result.mirrordepth_edge}, {result.made}",
        )
        for tested in result.tested
        if tested.outcome != "skipped"
    ]


def _head(tested: SubjectResult) -> dict[str, str]:
    """The headline of a subject."""
    p50, p99 = (tested.figure("bench", name) for name in ("p50", "p99"))
    age = tested.figure("stream", "age p50")
    more = [f"p99 {_number(p99)} ms"] if p99 is not None else []
    more += [f"depth is {_number(age)} ms old with a 30 fps camera"] if age is not None else []
    latency = "not timed" if p50 is None else f"{_number(p50)} ms"
    return {
        "outcome": tested.outcome,
        "figure": "failed" if tested.outcome == "failed" else latency,
        "what": str(tested.subject),
        "where": f"{tested.backend} {tested.backend_version} on {tested.device}",
        "more": "; ".join(more),
    }


def _cell(step: Step | None) -> tuple[str, str]:
    """Outcome and key figure of a step."""
    if step is None or step.outcome == "skipped":
        return NOTHING, ""
    if step.outcome == "passed" and step.name == "verify":  # one figure for each reference, named after it
        means = [figure.value for name, figure in step.figures.items() if name.startswith("mean relative")]
        return "passed", f"mean {max(means):.1e}" if means else ""
    name, word = KEY_FIGURES.get(step.name, ("", ""))
    figure = step.figures.get(name) if step.outcome == "passed" else None
    return step.outcome, "" if figure is None else f"{word} {_with_unit(figure)}"


def _skips(result: SelfTest) -> list[tuple[str, str]]:
    """Reasons with what was skipped for each, without the steps that needed another step."""
    skipped: dict[str, list[str]] = {}
    for tested in result.tested:
        for step in tested.steps:
            reason = step.reason or ""
            if step.outcome == "skipped" and not reason.endswith("did not pass"):
                what = str(tested.subject) if step.name == "make" else f"{tested.subject}, {step.name}"
                skipped.setdefault(reason, []).append(what)
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


def _ms(value: float | None) -> str:
    return "" if value is None else _number(value)


def _number(value: float) -> str:
    """Format with three significant digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-2 else f"{value:.1e}"
