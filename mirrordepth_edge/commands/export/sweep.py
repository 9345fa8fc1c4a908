"""`mde export --sweep`: what each choice of precision costs, as a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirrordepth_edge.config import Precision, TargetConfig
    from mirrordepth_edge.quantise.pipeline import Fitted, Int8Quantizer
    from mirrordepth_edge.quantise.sweep import Cost
    from mirrordepth_edge.quantise.sweep_result import SweepResult

TIMED_FRAMES = 30
"""Of each point and of FP32, in turn; as many again with FP32 first."""


def run_sweep(
    workshop: Int8Quantizer, output: Path, targets: Sequence[TargetConfig], pick: int | None
) -> Fitted | None:
    """Sweep, tell, and give the point that was picked."""
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.quantise.sweep import picked, settings_sha256, sweep
    from mirrordepth_edge.quantise.sweep_result import save_sweep
    from mirrordepth_edge.report.html import save_page
    from mirrordepth_edge.report.sweep import sweep_page

    cost = measured(workshop) if workshop.config.scheme == "cpu" else estimated(workshop, targets)
    store = _cache_folder() / f"{settings_sha256(workshop, cost)[:16]}.json"
    result = sweep(workshop, cost, store)
    if pick is not None:
        return picked(workshop, cost, store, result, pick)
    _print(result)
    page, data = output.with_suffix(".sweep.html"), output.with_suffix(".sweep.json")
    save_sweep(data, result)
    save_page(page, sweep_page(result))
    console.print(f"wrote {page} and {data}; to write a point of it, repeat the command with --pick NUMBER")
    return None


def _cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("mirrordepth-edge")) / "sweeps"


def measured(workshop: Int8Quantizer) -> Cost:
    """Each candidate timed in turn with the FP32 file in ONNX Runtime, so that their ratio holds on a busy machine."""
    import numpy as np
    import onnx

    from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
    from mirrordepth_edge.bench.measure import time_interleaved
    from mirrordepth_edge.config import SessionOptions
    from mirrordepth_edge.machine.device import installed_versions, machine

    options = SessionOptions(device="cpu", yields=True)

    def of(nodes: Sequence[str]) -> tuple[float, float]:
        path = workshop.folder / "timed.onnx"
        onnx.save(workshop.make(nodes), path)
        image = workshop.prepared(workshop.held_out[:1])[0]
        with (
            OnnxRuntimeSession(path, workshop.described(nodes), options) as candidate,
            OnnxRuntimeSession(workshop.fp32, workshop.manifest, options) as fp32,
        ):
            feeds = {candidate.inputs[0].name: image}
            workshop.progress.stage("timing", 0)
            paths = [[lambda _, session=session: session.infer(feeds)] for session in (candidate, fp32)]
            time_interleaved(paths, 3)
            own_first = time_interleaved(paths, TIMED_FRAMES)
            fp32_first = time_interleaved(paths[::-1], TIMED_FRAMES)[::-1]
            own_ms, fp32_ms = (float(np.median(each)) for each in zip(own_first, fp32_first, strict=True))
        return own_ms, fp32_ms

    from mirrordepth_edge.quantise.sweep import Cost

    version = ", ".join(installed_versions(["onnxruntime", "onnxruntime-gpu"]).values())
    turns = f"the median of {2 * TIMED_FRAMES} frames each, in turn with FP32"
    return Cost(f"measured: ONNX Runtime {version} on {machine().cpu}, {turns}", of)


def estimated(workshop: Int8Quantizer, targets: Sequence[TargetConfig]) -> Cost:
    """A lower bound from what the target can multiply and move."""
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.graph.cost import node_costs
    from mirrordepth_edge.graph.names import HEAD_PREFIX
    from mirrordepth_edge.graph.roofline import NOT_MEASURED, estimate
    from mirrordepth_edge.quantise.sweep import Cost

    if len(targets) != 1:
        raise OptionError(
            "A sweep for a GPU is an estimate for one target.",
            "What a layer costs depends on what the GPU can multiply and move.",
            "--target orin-nano, or another one of mde export --help; --target cpu is timed here.",
        )
    (target,) = targets
    costs = node_costs(workshop.model)

    def of(nodes: Sequence[str]) -> tuple[float, float]:
        chosen = set(nodes)

        def precision_of(name: str) -> Precision:
            return "int8" if name in chosen else "fp32" if name.startswith(HEAD_PREFIX) else "fp16"

        return estimate(costs, precision_of, target).bound_ms, estimate(costs, lambda name: "fp32", target).bound_ms

    return Cost(f"{NOT_MEASURED}: the least that {target.name} needs", of, asdict(target))


def _print(result: SweepResult) -> None:
    from mirrordepth_edge.commands.terminal import console, print_table
    from mirrordepth_edge.report.tables import Table

    rows = [
        (
            f"{'-' if point is result.baseline else point.number}{' *' if point.on_front else ''}",
            f"{point.int8_share:.0%}",
            f"{point.abs_rel:.4f}",
            f"{point.loss:+.2%}",
            f"{point.delta1:.4f}",
            f"{point.worst:.0%}",
            "-" if point.boundary_f1 is None else f"{point.boundary_f1:.3f}",
            f"{point.cost_ms:.3g} ms",
            f"{point.cost_ratio:.2f}",
        )
        for point in (*result.points, result.baseline)
    ]
    header = ("point", "in INT8", "AbsRel", "loss", "delta1", "worst pixel", "boundary F1", "time", "to FP32")
    of = "measured depth" if result.labelled else "FP32's depth"
    print_table(
        Table(
            header=header,
            rows=tuple(rows),
            notes=(
                "* no other point is as good in loss and time and better in one; a gain over FP32 counts as no loss.",
                f"AbsRel against {of}, {result.frames} frames of {result.data}; the worst pixel against FP32.",
                f"time: {result.cost}",
            ),
        )
    )
    console.print(f"{len(result.groups)} groups of layers, {result.seconds:.0f} s")
