"""`mde bench`: latency, throughput and streams of engines, ONNX files and checkpoints, measured and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.bench.compare import compare
from mirrordepth_edge.commands.bench.options import ModelFirst
from mirrordepth_edge.commands.engine_options import Trust
from mirrordepth_edge.commands.parameters import (
    NANO,
    Backend,
    Bf16,
    ClipWeights,
    Device,
    Model,
    session_options,
)
from mirrordepth_edge.commands.sizes import NetworkSize, parse_size
from mirrordepth_edge.commands.target_option import Target, resolve

bench_app = typer.Typer(cls=ModelFirst, invoke_without_command=True)

FailIf = Annotated[
    list[str] | None, typer.Option(metavar="GATE", help="Exit with 3 if so: 'p99>33ms', 'p50>1.05*base.json'.")
]
Protocol = Annotated[
    str, typer.Option(help="host: frame to metres; network; trtexec-10, trtexec-11: as those count, on a GPU.")
]


@bench_app.callback()
def bench(
    context: typer.Context,
    engine: Model = NANO,
    target: Target = None,
    trust: Trust = False,
    vs: Annotated[list[str] | None, typer.Option(help="Another artefact, timed in turn, frame by frame.")] = None,
    suite: Annotated[
        str | None, typer.Option(help="Many cases in turn: quick, edge, resolutions, precision, backends, batch.")
    ] = None,
    mode: Annotated[str, typer.Option(help="latency, throughput, or stream: frames that do not wait.")] = "latency",
    protocol: Protocol = "host",
    network_only: Annotated[bool, typer.Option("--network-only", help="The same as --protocol network.")] = False,
    iterations: Annotated[int | None, typer.Option(min=1, help="Latency: timed frames.  [200]")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Frames before that.  [until times settle]")] = None,
    frame: Annotated[str, typer.Option(metavar="HxW", help="Size of the camera frame.")] = "480x640",
    fps: Annotated[
        list[float] | None, typer.Option(min=0.1, help="Stream: frames a second, once or more.  [15, 30, 60]")
    ] = None,
    duration: Annotated[
        str | None, typer.Option(help="Throughput, stream: how long, at each rate, such as 10s.  [5s]")
    ] = None,
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Throughput: frames in work at once, by one engine or a session each.  [2]"),
    ] = None,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    bf16: Bf16 = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [all cores]")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the result, raw samples included; for a suite, the folder.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a page with tables and charts.")
    ] = None,
    fail_if: FailIf = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Measure latency, from a camera frame in host memory to metres in host memory."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import replace

    from mirrordepth_edge.commands.bench import modes
    from mirrordepth_edge.commands.bench.options import check_given, check_protocol, parse_duration
    from mirrordepth_edge.config import BenchConfig
    from mirrordepth_edge.errors import OptionError

    given = {
        "--vs": vs,
        "--iterations": iterations,
        "--network-only": network_only,
        "--protocol": protocol != "host",
        "--fps": fps,
        "--duration": duration,
        "--in-flight": in_flight,
        "--report": html,
        "--fail-if": fail_if,
        "--bf16": bf16,
        "--backend": backend,
        "--threads": threads,
        "--warmup": warmup,
        "--frame": frame != "480x640",
        "--mode": mode != "latency",
        "--target": target,
        "--network-size": network_size,
    }
    check_given("suite" if suite else mode, given)
    if network_only and protocol not in ("host", "network"):
        why = "They name two boundaries."
        raise OptionError(f"--network-only and --protocol {protocol} exclude each other.", why, "Give one of them.")
    config = BenchConfig(
        iterations=iterations or 200,
        warmup=warmup,
        frame_hw=parse_size(frame, "--frame"),
        protocol=check_protocol("network" if network_only else protocol),
    )
    seconds = parse_duration(duration or "5s")
    options = replace(session_options(device, clip_weights, threads, backend, bf16, network_size), trust=trust)
    engine = resolve(engine, target, options)
    if suite is not None:
        from mirrordepth_edge.commands.bench.suite import run_suite

        run_suite(suite, engine, options, json_file)
    elif mode == "stream":
        modes.stream(engine, options, config, fps or [15.0, 30.0, 60.0], seconds, json_file)
    elif mode == "throughput":
        modes.throughput(engine, options, config, in_flight or 2, seconds, json_file)
    else:
        modes.latency([engine, *(vs or ())], options, config, fail_if or (), json_file, html)


bench_app.command()(compare)
