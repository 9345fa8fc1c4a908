"""`mde bench`: latency, throughput and streams of models, measured and compared."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mirrordepth_edge.commands.parameters import (
    NANO,
    Model,
    RuntimeOptions,
    Target,
    choice,
    flat_options,
    parse_size,
    runtime_option,
)
from mirrordepth_edge.commands.verbs import SectionedCommand, SectionedGroup
from mirrordepth_edge.config import BenchConfig, BenchProtocol
from mirrordepth_edge.errors import OptionError

Mode = Literal["latency", "throughput", "stream"]

MEASUREMENT = "Measurement options"
measurement_option = partial(typer.Option, rich_help_panel=MEASUREMENT)
OUTPUT = "Output options"
output_option = partial(typer.Option, rich_help_panel=OUTPUT)
FRAME = "480x640"
# The modes that an option applies to; an option that is not listed applies to all of them, suites included.
APPLIES_TO: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--vs", "--iterations", "--network-only", "--protocol", "--report", "--fail-if"), ("latency",)),
    "--fps": ("stream",),
    "--in-flight": ("throughput",),
    "--duration": ("stream", "throughput"),
    **dict.fromkeys(
        ("--mode", "--warmup", "--frame", "--target", "--backend", "--bf16", "--threads", "--network-size"),
        ("latency", "stream", "throughput"),
    ),
}
SECONDS_PER_UNIT = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0}
MIN_DURATION_S = 0.5


class ModelFirst(SectionedGroup):
    """A group that accepts a model in place of a command: `mde bench a.plan` is `mde bench --engine a.plan`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and re.fullmatch(r"nano(\.fp16)?|.+\.(onnx|plan|engine|safetensors)", args[0]):
            args = ["--engine", *args]
        return super().parse_args(ctx, args)


bench_app = typer.Typer(cls=ModelFirst, invoke_without_command=True, add_completion=False, rich_markup_mode=None)


@bench_app.callback()
@flat_options
def bench(
    context: typer.Context,
    *,
    engine: Model = NANO,
    mode: Annotated[
        Mode, choice(Mode, "--mode", help="stream simulates a live camera: missed frames, age, sustainable rate.")
    ] = "latency",
    vs: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Latency: compare with another model, interleaved.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Run quick, edge, resolutions, precision, backends, batch, or a .toml file.")
    ] = None,
    protocol: Annotated[
        BenchProtocol,
        choice(
            BenchProtocol,
            "--protocol",
            help="Latency: host: from camera frame to metres; network: the network alone; trtexec-10 and -11: on the "
            "GPU's clock, as those versions of trtexec measure.",
            rich_help_panel=MEASUREMENT,
        ),
    ] = "host",
    network_only: Annotated[bool, measurement_option("--network-only", help="Same as --protocol network.")] = False,
    iterations: Annotated[
        int | None, measurement_option(min=1, metavar="N", help="Latency: timed frames.  [default: 200]")
    ] = None,
    warmup: Annotated[
        int | None, measurement_option(min=0, metavar="N", help="Untimed frames first.  [default: until times settle]")
    ] = None,
    frame: Annotated[str, measurement_option(metavar="HxW", help="Size of the camera frame.")] = FRAME,
    fps: Annotated[
        list[float] | None,
        measurement_option(
            min=0.1, metavar="RATE", help="Stream: frames per second; may be repeated.  [default: 15, 30, 60]"
        ),
    ] = None,
    duration: Annotated[
        str | None,
        measurement_option(metavar="TIME", help="Throughput, stream: time per rate, such as 10s.  [default: 5s]"),
    ] = None,
    in_flight: Annotated[
        int | None,
        measurement_option(
            min=1, metavar="N", help="Throughput: frames in flight, in one engine or in a session each.  [default: 2]"
        ),
    ] = None,
    target: Target = None,
    runtime: RuntimeOptions,
    threads: Annotated[
        int | None, runtime_option(min=1, metavar="N", help="CPU threads.  [default: all cores]")
    ] = None,
    json_file: Annotated[
        Path | None, output_option("--json", help="Write the result with raw samples; with --suite, a folder.")
    ] = None,
    html: Annotated[
        Path | None, output_option("--report", metavar="FILE.html", help="Latency: write tables and charts.")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        output_option(
            metavar="GATE", help="Latency: exit with 3 if this holds, such as 'p99>33ms' or 'p50>1.05*base.json'."
        ),
    ] = None,
) -> None:
    """Measure latency, throughput or a simulated camera stream.

    Times run from a camera frame in host memory to metric depth in host memory, unless --protocol says otherwise.
    """
    if context.invoked_subcommand is not None:
        return
    check_options("suite" if suite else mode, given_options(context))
    if network_only and protocol not in ("host", "network"):
        why = "They time different parts."
        raise OptionError(f"--network-only and --protocol {protocol} exclude each other.", why, "Give one of them.")
    config = BenchConfig(
        iterations=iterations or 200,
        warmup=warmup,
        frame_hw=parse_size(frame, "--frame"),
        protocol="network" if network_only else protocol,
    )
    duration_s = parse_duration(duration or "5s")
    options = runtime.session(threads)

    from mirrordepth_edge.commands.bench import modes
    from mirrordepth_edge.commands.bench.suite import run_suite
    from mirrordepth_edge.commands.target import resolve

    if suite is not None:
        run_suite(suite, engine, options, json_file)
        return
    model = resolve(engine, target, options)
    if mode == "stream":
        modes.stream(model, options, config, fps or [15.0, 30.0, 60.0], duration_s, json_file)
    elif mode == "throughput":
        modes.throughput(model, options, config, in_flight or 2, duration_s, json_file)
    else:
        modes.latency([model, *(vs or ())], options, config, fail_if or (), json_file, html)


@bench_app.command(cls=SectionedCommand)
def compare(
    results: Annotated[list[Path], typer.Argument(help="Files that --json wrote; the first is the baseline.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Compare even if machine, frame size or protocol differ.")
    ] = False,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
) -> None:
    """Compare stored results: ratios of medians with their uncertainty."""
    from mirrordepth_edge.commands.bench.modes import compare_results

    if len(results) < 2:
        raise OptionError(
            "There is nothing to compare.", "Only one result was given.", "mde bench compare A.json B.json"
        )
    compare_results(results, anyway, markdown)


def given_options(context: typer.Context) -> set[str]:
    """Return the options whose value is not the default."""
    values = ((option, context.params.get(option.name or "")) for option in context.command.params)
    return {option.opts[0] for option, value in values if value and value != option.default}


def check_options(mode: str, given: Collection[str]) -> None:
    """Refuse options that have no effect.

    Args:
        mode: The mode, or `suite`.
        given: Names of the options that are not at their default.

    Raises:
        OptionError: An option does not apply to the mode.
    """
    unused = [option for option, modes in APPLIES_TO.items() if option in given and mode not in modes]
    if unused:
        what = "--suite" if mode == "suite" else f"--mode {mode}"
        why = "A suite sets it for each case." if mode == "suite" else "It has no effect there."
        raise OptionError(f"{', '.join(unused)} cannot be used with {what}.", why, f"Leave out {' and '.join(unused)}.")


def parse_duration(text: str, option: str = "--duration") -> float:
    """Parse `10s`, `500ms`, `2min` or a number of seconds into seconds.

    Raises:
        OptionError: The text cannot be parsed, or it is less than half a second.
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|ms|min|)", text.strip().lower())
    seconds = float(match[1]) * SECONDS_PER_UNIT[match[2]] if match else 0.0
    if seconds < MIN_DURATION_S:
        why = f"It is a number of seconds, or a number with s, ms or min; at least {MIN_DURATION_S:g} s."
        raise OptionError(f"{option} {text!r} is not a valid duration.", why, f"{option} 10s")
    return seconds
