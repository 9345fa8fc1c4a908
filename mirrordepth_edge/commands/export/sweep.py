"""`mde export --sweep`: accuracy against speed of each choice of INT8 layers, as a table and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from mirrordepth_edge.backends.onnxruntime import OnnxRuntimeSession
from mirrordepth_edge.bench.measure import time_interleaved
from mirrordepth_edge.commands.terminal import console, print_table
from mirrordepth_edge.config import Precision, SessionOptions, TargetConfig
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.graph.cost import node_costs
from mirrordepth_edge.graph.names import HEAD_PREFIX
from mirrordepth_edge.graph.roofline import NOT_MEASURED, estimate
from mirrordepth_edge.machine.device import installed_versions, machine
from mirrordepth_edge.quantise.pipeline import Fitted, Int8Quantizer
from mirrordepth_edge.quantise.sweep import Cost, pick_point, settings_sha256, sweep
from mirrordepth_edge.quantise.sweep_result import SweepResult
from mirrordepth_edge.report.html import save_page
from mirrordepth_edge.report.sweep import sweep_page
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.support.cache import user_cache
from mirrordepth_edge.support.files import write_json

TIMED_FRAMES = 30
"""Timed frames of each point, interleaved with FP32; as many again with FP32 first."""


def run_sweep(
    quantizer: Int8Quantizer, output: Path, targets: Sequence[TargetConfig], pick: int | None
) -> Fitted | None:
    """Sweep and print the result, or return point `pick`."""
    cost = measure_cost(quantizer) if quantizer.config.scheme == "cpu" else estimate_cost(quantizer, targets)
    store = user_cache("sweeps") / f"{settings_sha256(quantizer, cost)[:16]}.json"
    result = sweep(quantizer, cost, store)
    if pick is not None:
        return pick_point(quantizer, cost, store, result, pick)
    _print(result)
    page, data = output.with_suffix(".sweep.html"), output.with_suffix(".sweep.json")
    write_json(data, asdict(result))
    save_page(page, sweep_page(result))
    console.print(f"wrote {page} and {data}; to write a point of it, repeat the command with --pick N")
    return None


def measure_cost(quantizer: Int8Quantizer) -> Cost:
    """Return a cost that times each candidate in ONNX Runtime, interleaved with FP32.

    Interleaving keeps their ratio valid on a busy machine.
    """
    options = SessionOptions(device="cpu", yields=True)

    def cost_of(nodes: Sequence[str]) -> tuple[float, float]:
        path = quantizer.folder / "timed.onnx"
        onnx.save(quantizer.make(nodes), path)
        image = quantizer.preprocess(quantizer.held_out[:1])[0]
        with (
            OnnxRuntimeSession(path, quantizer.manifest_of(nodes), options) as candidate,
            OnnxRuntimeSession(quantizer.fp32.path, quantizer.manifest, options) as fp32,
        ):
            feeds = {candidate.inputs[0].name: image}
            quantizer.progress.stage("timing", 0)
            paths = [[lambda _, session=session: session.infer(feeds)] for session in (candidate, fp32)]
            time_interleaved(paths, 3)
            own_first = time_interleaved(paths, TIMED_FRAMES)
            fp32_first = time_interleaved(paths[::-1], TIMED_FRAMES)[::-1]
            own_ms, fp32_ms = (float(np.median(times)) for times in zip(own_first, fp32_first, strict=True))
        return own_ms, fp32_ms

    version = ", ".join(installed_versions(["onnxruntime", "onnxruntime-gpu"]).values())
    method = f"the median of {2 * TIMED_FRAMES} frames each, interleaved with FP32"
    return Cost(f"measured: ONNX Runtime {version} on {machine().cpu}, {method}", cost_of)


def estimate_cost(quantizer: Int8Quantizer, targets: Sequence[TargetConfig]) -> Cost:
    """Return a cost that is a roofline bound: what the target can multiply and move at most."""
    if len(targets) != 1:
        raise OptionError(
            "--sweep for a GPU needs exactly one target.",
            "The estimate depends on the compute and bandwidth of the GPU.",
            "--target orin-nano, or --target cpu, which is timed here",
        )
    (target,) = targets
    costs = node_costs(quantizer.model)

    def cost_of(nodes: Sequence[str]) -> tuple[float, float]:
        chosen = set(nodes)

        def precision_of(name: str) -> Precision:
            return "int8" if name in chosen else "fp32" if name.startswith(HEAD_PREFIX) else "fp16"

        return estimate(costs, precision_of, target).bound_ms, estimate(costs, lambda name: "fp32", target).bound_ms

    return Cost(f"{NOT_MEASURED}: lower bound for {target.name}", cost_of, asdict(target))


def _print(result: SweepResult) -> None:
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
    header = ("point", "in INT8", "AbsRel", "loss", "delta1", "worst pixel", "boundary F1", "time", "vs FP32")
    reference = "measured depth" if result.labelled else "FP32's depth"
    print_table(
        Table(
            header=header,
            rows=tuple(rows),
            notes=(
                "* Pareto-optimal in loss and time; an improvement over FP32 counts as zero loss.",
                f"AbsRel against {reference}, {result.frames} frames of {result.data}; worst pixel against FP32.",
                f"time: {result.cost}",
            ),
        )
    )
    console.print(f"{len(result.groups)} groups of layers, {result.seconds:.0f} s")
