"""The builder's process: what goes in, what comes out, and what a user is told when it dies."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mirrordepth_edge.config import BuildConfig
from mirrordepth_edge.engines.progress import BuildProgress
from mirrordepth_edge.errors import DeviceError, InputError, MdeError, OptionError
from mirrordepth_edge.machine.system import ADD_SWAP
from mirrordepth_edge.manifest import Manifest
from mirrordepth_edge.support.worker import command_of

OnProgress = Callable[[BuildProgress], None]

COMMAND = command_of("mirrordepth_edge.engines.worker")
OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|cudaErrorMemoryAllocation|bad_alloc|MemoryError|insufficient workspace|workspace (limit|size)",
    re.IGNORECASE,
)
"""How TensorRT, CUDA, C++ and Python say it; "OutOfMemory (Requested size was N bytes.)" is TensorRT's own."""
PARSER_ERROR = re.compile(r"^node (.+?) \(([^()]*)\): (.*?)(?=\nnode |\Z)", re.MULTILINE | re.DOTALL)
"""A line of `build_worker.parser_errors`: node, operator ("?" where the error is not one node's) and reason."""
UNNAMED = "?"
UNTOLD = ("", "false")
"""What stands for a reason where the parser's check is a mere `false`, as for operators that TensorRT lacks."""
LOGGED_ERROR = re.compile(r"\[[EF]\]|IN_ERROR|Internal Error")
KILLED = -9  # SIGKILL, which Windows lacks; Linux sends it to who has most when memory runs out
MOST_LINES = 3


def run_worker(request: dict[str, Any], config: BuildConfig, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Run the builder in a child process, which dies with this one's Ctrl-C.

    Args:
        request: as `build_worker` takes it.
        config: what was asked for, to say what to change.

    Returns:
        `version`, `timing` and `peak_memory_mb`; the plan lies where the request says.

    Raises:
        InputError: the parser or builder refused the file, or the plan cannot be written.
        OptionError: an option does not fit the file.
        DeviceError: memory ran out.
    """
    said: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as worker,
    ):
        assert worker.stdin is not None, "it is a pipe"
        assert worker.stdout is not None, "it is a pipe"
        try:
            with suppress(BrokenPipeError):  # it died before it read: the status says how
                worker.stdin.write(json.dumps(request))
                worker.stdin.close()
            for line in worker.stdout:
                event = json.loads(line)
                if "progress" not in event:
                    said = event
                elif on_progress is not None:
                    on_progress(BuildProgress(**event["progress"]))
            worker.wait()
        except BaseException:
            worker.kill()
            raise
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    if "built" in said:
        built: dict[str, Any] = said["built"]
        return built
    raise explain(said, worker.returncode, lines, request, config)


def refuse_cpu_int8(onnx_path: Path, source: Manifest) -> None:
    """Refuse a file whose INT8 is a CPU's before a builder is started.

    Raises:
        InputError: its zero points are not 0, as those that TensorRT takes are
            (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).
    """
    if source.quantisation is None or source.quantisation.scheme != "cpu":
        return
    raise InputError(
        f"{onnx_path} is INT8 for a CPU, and no engine can be built of it.",
        "Its activations are quantised with zero points of their own; TensorRT takes symmetric INT8, with none.",
        "Export it for a GPU: mde export --int8 as before, without --target cpu. On a CPU the file runs as it is: "
        f"mde run PICTURE --model {onnx_path}",
    )


def explain(
    said: dict[str, Any], status: int, lines: Sequence[str], request: dict[str, Any], config: BuildConfig
) -> MdeError:
    """The error for a build that gave no plan.

    Args:
        said: the worker's last words; empty where it had none.
        status: its exit status, negative where a signal ended it.
        lines: what it and its libraries logged.
    """
    what = f"{request['flavour']} cannot build {request['onnx']}."
    if "refused" in said:
        return OptionError(*said["refused"])
    if "unwritable" in said:
        folder = Path(request["plan"]).parent
        return InputError(
            f"Cannot write {request['plan']}.",
            said["unwritable"],
            f"Engines are built in the folder for temporary files: free space in {folder}, or build in another one: "
            f"TMPDIR=/path mde build {request['onnx']} …",
        )
    failed = str(said.get("failed", ""))
    if (errors := PARSER_ERROR.findall(failed)) and not OUT_OF_MEMORY.search(failed):
        return _not_parsed(what, errors, request)
    logged = [line for line in lines if LOGGED_ERROR.search(line)][-MOST_LINES:]
    if said:
        words = [str(said.get("failed") or said.get("memory")), *logged]
    elif status == KILLED:
        words = ["The system ended the builder with SIGKILL, as Linux does when memory runs out"]
    elif status < 0:
        words = [f"the builder crashed with {signal.Signals(-status).name}", *(logged or lines[-1:])]
    else:
        words = [*lines[-1:]] or [f"the builder stopped with status {status}"]
    why = "\n".join(dict.fromkeys(words))
    if "memory" in said or status == KILLED or OUT_OF_MEMORY.search(why):
        return DeviceError(
            f"Memory ran out while {request['flavour']} built {request['onnx']}.", why, _relief(config, request)
        )
    cure = f"mde inspect {request['onnx']} shows what it is; another --target, or mde export again, may do."
    return InputError(what, why, cure)


def _not_parsed(what: str, errors: Sequence[tuple[str, str, str]], request: dict[str, Any]) -> InputError:
    """The parser names the operators; what it logs beside that is a dump of the node, a line a field."""
    words, cure = [], "Make the file again with this version's mde export"
    for node, operator, said in errors:
        if operator == UNNAMED:  # the file as a whole
            words.append(said)
            continue
        where = "" if node == UNNAMED else f" (node {node})"
        reason = "." if said in UNTOLD else f": {said}"
        words.append(f"TensorRT has no operator {operator}, or not in this form{where}{reason}")
    if all(operator != UNNAMED for _, operator, _ in errors):
        cure += f", or run the ONNX file itself: mde run PICTURE --model {request['onnx']}"
    return InputError(what, "\n".join(dict.fromkeys(words)), f"{cure}.")


def _relief(config: BuildConfig, request: dict[str, Any]) -> str:
    """What to give a builder less, or more, of."""
    ways = ["--workspace 1"]
    if config.workspace_gib is not None:
        ways = [f"another --workspace than {config.workspace_gib:g} (too little fails too), or none"]
    if request["flavour"] == "tensorrt":
        ways.append("--optimisation-level 1")
    ways += ["a smaller mde export --size", "close other programs"]
    return f"Try {'; '.join(ways)}. On a Jetson, whose GPU shares the memory, add swap: {ADD_SWAP}"
