"""Which options of `mde bench` go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mirrordepth_edge.errors import OptionError

if TYPE_CHECKING:
    from mirrordepth_edge.config import BenchProtocol

# Options that each mode ignores, and which are therefore refused with it.
OF_LATENCY = ("--vs", "--iterations", "--network-only", "--protocol", "--report", "--fail-if")
OF_STREAM = ("--fps",)
OF_THROUGHPUT = ("--in-flight",)
OF_CASES = ("--backend", "--bf16", "--threads", "--warmup", "--frame", "--target")
USELESS = {
    "latency": (*OF_STREAM, *OF_THROUGHPUT, "--duration"),
    "stream": (*OF_LATENCY, *OF_THROUGHPUT),
    "throughput": (*OF_LATENCY, *OF_STREAM),
    "suite": (*OF_LATENCY, *OF_STREAM, *OF_THROUGHPUT, "--duration", "--mode", *OF_CASES),
}


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
