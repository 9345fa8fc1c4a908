"""Run the builder in a process of its own, and explain why there is no engine."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.worker import BuildProgress
from mirrordepth_edge.errors import DeviceError, InputError, MdeError
from mirrordepth_edge.machine.system import ADD_SWAP
from mirrordepth_edge.manifest import Manifest
from mirrordepth_edge.support.worker import WorkerExit, call_worker, command_of

OnProgress = Callable[[BuildProgress], None]

COMMAND = command_of("mirrordepth_edge.engines.worker")
OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|cudaErrorMemoryAllocation|bad_alloc|MemoryError|insufficient workspace|workspace (limit|size)",
    re.IGNORECASE,
)
"""As TensorRT, CUDA, C++ and Python report it; TensorRT's own is "OutOfMemory (Requested size was N bytes.)"."""
PARSER_ERROR = re.compile(r"^node (.+?) \(([^()]*)\): (.*?)(?=\nnode |\Z)", re.MULTILINE | re.DOTALL)
"""A line of `worker.parser_errors`: node, operator ("?" if the error is about the whole file) and reason."""
UNNAMED = "?"
NO_REASON = ("", "false")
"""What the parser reports if its check is a plain `false`, as for operators that TensorRT does not have."""
LOGGED_ERROR = re.compile(r"\[[EF]\]|IN_ERROR|Internal Error")
KILLED = -9  # SIGKILL, which Windows lacks; Linux sends it to the largest process when memory runs out
MAX_LINES = 3


def run_builder(request: dict[str, Any], config: BuildConfig, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Build an engine in a child process, which Ctrl-C ends.

    Args:
        request: see `worker.build`.
        config: options of the build, for the advice in an error.

    Returns:
        `version`, `timing` and `peak_memory_mb`; the plan is written to the request's path.

    Raises:
        InputError: the parser or builder refused the file, or the plan cannot be written.
        OptionError: an option does not fit the file.
        DeviceError: memory ran out.
    """
    result: dict[str, Any] = {}

    def on_event(kind: str, value: Any) -> None:
        if kind != "progress":
            result[kind] = value
        elif on_progress is not None:
            on_progress(BuildProgress(**value))

    end = call_worker(COMMAND, request, on_event)
    if "built" in result:
        built: dict[str, Any] = result["built"]
        return built
    raise build_error(result.get("failed"), end, request, config)


def refuse_cpu_int8(onnx_path: Path, source: Manifest) -> None:
    """Refuse an INT8 file for CPUs before a builder is started.

    Raises:
        InputError: its zero points are not 0, as TensorRT requires
            (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).
    """
    if source.quantisation is None or source.quantisation.scheme != "cpu":
        return
    raise InputError(
        f"{onnx_path} is INT8 for a CPU; TensorRT cannot build it.",
        "Its activations have nonzero zero points; TensorRT supports only symmetric INT8.",
        "Export it for a GPU: the same mde export --int8 command without --target cpu. On a CPU run the ONNX file: "
        f"mde run PICTURE --model {onnx_path}",
    )


def build_error(failed: str | None, end: WorkerExit, request: dict[str, Any], config: BuildConfig) -> MdeError:
    """The error for a build without a plan.

    Args:
        failed: what the parser or builder reported; None if the worker died before that.
    """
    what = f"{request['flavour']} cannot build {request['onnx']}."
    if failed and (parser_errors := PARSER_ERROR.findall(failed)) and not OUT_OF_MEMORY.search(failed):
        return _parser_error(what, parser_errors, request)
    why = "\n".join(dict.fromkeys(_reasons(failed, end)))
    if OUT_OF_MEMORY.search(why) or (failed is None and end.status == KILLED):
        what = f"Out of memory while {request['flavour']} built {request['onnx']}."
        return DeviceError(what, why, _save_memory(config, request))
    cure = f"Check the file with mde inspect {request['onnx']}, try another --target, or repeat mde export."
    return InputError(what, why, cure)


def _reasons(failed: str | None, end: WorkerExit) -> list[str]:
    logged = [line for line in end.log if LOGGED_ERROR.search(line)][-MAX_LINES:]
    if failed is not None:
        return [failed, *logged]
    if end.status == KILLED:
        return ["The system killed the builder with SIGKILL, as Linux does when memory runs out"]
    if end.status < 0:
        return [f"the builder crashed with {signal.Signals(-end.status).name}", *(logged or end.log[-1:])]
    return [*end.log[-1:]] or [f"the builder exited with status {end.status}"]


def _parser_error(what: str, parser_errors: Sequence[tuple[str, str, str]], request: dict[str, Any]) -> InputError:
    """Name the operators. The parser's log is left out: it dumps the node, one field per line."""
    reasons, cure = [], "Export the file again with this version's mde export"
    for node, operator, text in parser_errors:
        if operator == UNNAMED:
            reasons.append(text)
            continue
        where = "" if node == UNNAMED else f" (node {node})"
        reason = "." if text in NO_REASON else f": {text}"
        reasons.append(f"TensorRT does not support the operator {operator}, or not in this form{where}{reason}")
    if all(operator != UNNAMED for _, operator, _ in parser_errors):
        cure += f", or run the ONNX file: mde run PICTURE --model {request['onnx']}"
    return InputError(what, "\n".join(dict.fromkeys(reasons)), f"{cure}.")


def _save_memory(config: BuildConfig, request: dict[str, Any]) -> str:
    """Options that need less memory, and how to get more."""
    ways = ["--workspace 1"]
    if config.workspace_gib is not None:
        ways = [f"a --workspace other than {config.workspace_gib:g} (too small fails too), or none"]
    if request["flavour"] == "tensorrt":
        ways.append("--optimisation-level 1")
    ways += ["a smaller mde export --size", "close other programs"]
    return f"Try {'; '.join(ways)}. On a Jetson, whose GPU shares the main memory, add swap: {ADD_SWAP}"
