"""What `mde bench` is told: which options go together, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from mirrordepth_edge.errors import OptionError

if TYPE_CHECKING:
    from mirrordepth_edge.config import BenchProtocol

# Options that each mode ignores, and which are therefore refused with it.
OF_LATENCY = ("--vs", "--iterations", "--network-only", "--protocol", "--report", "--fail-if")
OF_STREAM = ("--fps",)
OF_THROUGHPUT = ("--in-flight",)
OF_CASES = ("--backend", "--bf16", "--threads", "--warmup", "--frame", "--target", "--network-size")
USELESS = {
    "latency": (*OF_STREAM, *OF_THROUGHPUT, "--duration"),
    "stream": (*OF_LATENCY, *OF_THROUGHPUT),
    "throughput": (*OF_LATENCY, *OF_STREAM),
    "suite": (*OF_LATENCY, *OF_STREAM, *OF_THROUGHPUT, "--duration", "--mode", *OF_CASES),
}

SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0}
LEAST_S = 0.5


class ModelFirst(TyperGroup):
    """A group of commands that takes a model's name for `--engine` where a command's would come: `mde bench a.plan`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and re.fullmatch(r"nano(\.fp16)?|.+\.(onnx|plan|engine|safetensors)", args[0]):
            args = ["--engine", *args]
        return super().parse_args(ctx, args)


def parse_duration(text: str, option: str = "--duration") -> float:
    """`10s`, `500ms`, `2min` or a plain number of seconds, in seconds.

    Raises:
        OptionError: it is none of these, or less than half a second.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(s|ms|min|)", text.strip().lower())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if seconds < LEAST_S:
        why = f"It is a number of seconds, or one with s, ms or min behind it, and at least {LEAST_S:g} s."
        raise OptionError(f"{option} {text!r} is no time to measure for.", why, f"{option} 10s")
    return seconds


def check_given(mode: str, given: Mapping[str, object]) -> None:
    """Refuse options that have no effect.

    Args:
        given: truthy where the option was given.

    Raises:
        OptionError: one was, or there is no such mode.
    """
    if mode not in USELESS:
        raise OptionError(f"--mode {mode!r} is unknown.", "It is latency, throughput or stream.", "--mode stream")
    if useless := [option for option in USELESS[mode] if given[option]]:
        what = "--suite" if mode == "suite" else f"--mode {mode}"
        why = "A suite's file says it for each case." if mode == "suite" else "It has no use for them."
        raise OptionError(f"{', '.join(useless)} cannot go with {what}.", why, "Leave one of the two out.")


def check_protocol(name: str) -> BenchProtocol:
    """A protocol by its name.

    Raises:
        OptionError: there is none.
    """
    from mirrordepth_edge.bench.measure import BOUNDARIES

    if name not in BOUNDARIES:
        raise OptionError(f"--protocol {name!r} is unknown.", f"It is {', '.join(BOUNDARIES)}.", "--protocol host")
    return name
