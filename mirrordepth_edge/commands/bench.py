"""`mde bench`: latency of an engine, an ONNX file or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import NANO, ClipWeights, Device, Model, parse_size, session_options, warn

if TYPE_CHECKING:
    from mirrordepth_edge.bench.measure import BenchResult


def bench(
    engine: Model = NANO,
    iterations: Annotated[int, typer.Option(min=1, help="Timed frames.")] = 200,
    warmup: Annotated[int, typer.Option(min=0, help="Frames before timing starts.")] = 20,
    frame: Annotated[str, typer.Option(metavar="HxW", help="Size of the camera frame.")] = "480x640",
    network_only: Annotated[bool, typer.Option("--network-only", help="Leave resizing out, as trtexec does.")] = False,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [all cores]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result, raw samples included.")] = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Measure latency.

    From a camera frame in host memory to metres in host memory, on real frames, after a warm-up.
    """

    from mirrordepth_edge.bench.measure import bench as measure
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.config import BenchConfig
    from mirrordepth_edge.deploy.parity import reference_frames
    from mirrordepth_edge.files import ensure_folder, sha256_of, write_json
    from mirrordepth_edge.runtime import load, model_path

    config = BenchConfig(
        iterations=iterations, warmup=warmup, frame_hw=parse_size(frame, "--frame"), network_only=network_only
    )
    if json_file is not None:
        ensure_folder(json_file.parent)
    path = model_path(engine)
    with load(path, session_options(device, clip_weights, threads)) as predictor:
        warn(predictor)
        with errors.status("measuring"):
            result = measure(predictor, reference_frames(), config, artefact=path.name, artefact_sha256=sha256_of(path))
    _report(result)
    if json_file is not None:
        write_json(json_file, result.to_json())
        console.print(f"wrote {json_file}")


def _report(result: BenchResult) -> None:
    from mirrordepth_edge.bench.measure import UNSTEADY
    from mirrordepth_edge.commands.terminal import console

    latency = result.latency
    on = result.device if result.device != "cpu" else f"{result.machine.cpu}, {result.machine.cores} cores"
    console.print(f"{result.artefact}  {result.precision.upper()}  {result.backend} {result.backend_version} on {on}")
    console.print(f"from {result.boundary}")
    console.print(
        f"latency ms: p50 {latency.p50_ms:.2f}  p90 {latency.p90_ms:.2f}  p99 {latency.p99_ms:.2f}  "
        f"min {latency.min_ms:.2f}  max {latency.max_ms:.2f}  mean {latency.mean_ms:.2f}"
    )
    console.print(f"throughput: {latency.throughput_hz:.1f} frames/s over {latency.samples} frames, one after another")
    if latency.variation > UNSTEADY:
        console.print(
            f"warning: unsteady (deviation is {latency.variation:.0%} of the mean). Close other programs, fix the "
            "clocks (Jetson: sudo nvpmodel -m 0 && sudo jetson_clocks), or raise --iterations."
        )
