"""`mde bench`: latency of engines, ONNX files and checkpoints, measured and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.parameters import NANO, ClipWeights, Device, Model, parse_size, session_options, warn

bench_app = typer.Typer(invoke_without_command=True)

FailIf = Annotated[
    list[str] | None, typer.Option(metavar="GATE", help="Exit with 3 if so: 'p99>33ms', 'p50>1.05*base.json'.")
]


@bench_app.callback()
def bench(
    context: typer.Context,
    engine: Model = NANO,
    vs: Annotated[list[str] | None, typer.Option(help="Another artefact, timed in turn, frame by frame.")] = None,
    mode: Annotated[str, typer.Option(help="latency, or stream: frames that do not wait.")] = "latency",
    iterations: Annotated[int, typer.Option(min=1, help="Timed frames.")] = 200,
    warmup: Annotated[int | None, typer.Option(min=0, help="Frames before that.  [until times settle]")] = None,
    frame: Annotated[str, typer.Option(metavar="HxW", help="Size of the camera frame.")] = "480x640",
    network_only: Annotated[bool, typer.Option("--network-only", help="Leave resizing out, as trtexec does.")] = False,
    fps: Annotated[float, typer.Option(min=0.1, help="Stream: frames a second.")] = 30.0,
    duration: Annotated[float, typer.Option(min=0.5, help="Stream: seconds at each rate.")] = 5.0,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [all cores]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result, raw samples included.")] = None,
    fail_if: FailIf = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Measure latency, from a camera frame in host memory to metres in host memory.

    On real frames, after a warm-up that ends when times have settled; with all that is needed to repeat it.
    """
    if context.invoked_subcommand is not None:
        return
    from contextlib import ExitStack

    from mirrordepth_edge.bench.compare import differences, parse_gate
    from mirrordepth_edge.bench.measure import Candidate
    from mirrordepth_edge.bench.measure import bench as measure
    from mirrordepth_edge.commands.bench_view import report, report_stream, sidecar_name
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.config import BenchConfig
    from mirrordepth_edge.deploy.parity import reference_frames
    from mirrordepth_edge.errors import GateError
    from mirrordepth_edge.files import ensure_folder, sha256_of, write_json
    from mirrordepth_edge.runtime import load, model_path

    config = BenchConfig(
        iterations=iterations, warmup=warmup, frame_hw=parse_size(frame, "--frame"), network_only=network_only
    )
    streams = check_mode(mode, vs or network_only or json_file or fail_if)
    gates = [parse_gate(text) for text in fail_if or ()]
    if json_file is not None:
        ensure_folder(json_file.parent)
    paths = [model_path(each) for each in (engine, *(vs or ()))]
    with ExitStack() as stack:
        predictors = [stack.enter_context(load(path, session_options(device, clip_weights, threads))) for path in paths]
        for predictor in predictors:
            warn(predictor)
        if streams:
            report_stream(predictors[0], paths[0].name, config, fps, duration)
            return
        candidates = [
            Candidate(predictor=predictor, name=path.name, sha256=sha256_of(path))
            for predictor, path in zip(predictors, paths, strict=True)
        ]
        with errors.status("measuring"):
            results = measure(candidates, reference_frames(), config)
    for place, result in enumerate(results):
        report(result, against=results[0] if place else None)
        if json_file is not None:
            write_json(written := sidecar_name(json_file, place), result.to_json())
            console.print(f"wrote {written}")
    for gate in gates:
        if gate.base is not None and (other := differences(gate.base, results[0])):
            errors.print(f"warning: {gate.base.source} was not measured alike: {'; '.join(other)}")
    if failed := [sentence for gate in gates if (sentence := gate.check(results[0].latency))]:
        raise GateError(
            f"{results[0].artefact} is not as fast as it must be.", "; ".join(failed), "Find what made it slower."
        )


def check_mode(mode: str, other: object) -> bool:
    """Whether to stream.

    Args:
        other: truthy where options are given that have no effect on a stream.

    Raises:
        OptionError: there are, or there is no such mode.
    """
    from mirrordepth_edge.errors import OptionError

    if mode not in ("latency", "stream"):
        raise OptionError(f"--mode {mode!r} is unknown.", "It is latency or stream.", "--mode stream")
    if mode == "stream" and other:
        why = "A stream is one artefact's whole path, told on the terminal."
        raise OptionError("--vs, --network-only, --json and --fail-if go with --mode latency.", why, "Leave them out.")
    return mode == "stream"


@bench_app.command()
def compare(
    results: Annotated[
        list[Path], typer.Argument(help="What --json wrote; the first is what others are held against.")
    ],
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare across machines, sizes and boundaries.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables, as GitHub shows them.")] = None,
) -> None:
    """Compare stored results: ratios of medians with their uncertainty."""
    from mirrordepth_edge.bench import compare as comparing
    from mirrordepth_edge.commands.terminal import console
    from mirrordepth_edge.errors import OptionError
    from mirrordepth_edge.files import written_whole

    if len(results) < 2:
        raise OptionError("There is nothing to compare.", "One result was named.", "mde bench compare A.json B.json")
    first, *others = [comparing.read_result(path) for path in results]
    comparisons = [comparing.compare(first, other, anyway=anyway) for other in others]
    for comparison in comparisons:
        console.print(f"{comparison.second.source} against {first.source}: {comparison.verdict}")
        for difference in comparison.differences:
            console.print(f"  note: {difference}")
    if markdown is not None:
        with written_whole(markdown) as temporary:
            temporary.write_text(comparing.markdown(comparisons), encoding="utf-8")
        console.print(f"wrote {markdown}")
