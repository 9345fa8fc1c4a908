"""Compare `mde bench` with TensorRT's trtexec on the same engine, in alternating runs. Not yet run on hardware.

    python benchmarks/peers/trtexec.py depth.plan --protocol trtexec-10

The defaults of trtexec changed with TensorRT 11 (samples/common/sampleOptions.h and .cpp of github.com/NVIDIA/TensorRT,
tags v10.9.0 and v11.1, class InferenceOptions):

- up to 10: copies to and from the GPU, no CUDA graph, blocking synchronisation;
- since 11: no copies, a CUDA graph, spin wait (`--includeDataTransfers --noCudaGraph --noSpinWait` undo them).

Both warm up for 200 ms and measure for 3 s. The script passes the flags that make the installed trtexec follow
--protocol: GPU times of copies and compute, or of compute alone. Two differences remain: trtexec overlaps the copies of
the next query with the compute of the current one, and ours uses no CUDA graph.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import open_ours, parser, positive, run_script

from mirrordepth_edge.backends.base import DEVICE_STAGES, Arrays
from mirrordepth_edge.bench.measure import bench, camera_frames
from mirrordepth_edge.bench.stats import ratio_interval, summarise
from mirrordepth_edge.bench.trtexec_log import PARTS, Times, read_times
from mirrordepth_edge.commands.terminal import print_table
from mirrordepth_edge.config import BenchConfig, SessionOptions
from mirrordepth_edge.errors import DeviceError, MissingError, OptionError
from mirrordepth_edge.export.parity import reference_frames
from mirrordepth_edge.report.tables import Table

JETPACK = "/usr/src/tensorrt/bin/trtexec"
"""Path in JetPack and in the Debian packages, which is not on PATH."""
SINCE_11 = "--includeDataTransfers"
"""An option of trtexec 11 and later."""
# By protocol: flags up to version 10, and since 11.
FLAGS = {
    "trtexec-10": ((), (SINCE_11, "--noCudaGraph", "--noSpinWait")),
    "trtexec-11": (("--noDataTransfers", "--useCudaGraph", "--useSpinWait"), ()),
}
WARM_UP_MS = 200


def find_trtexec(named: str | None) -> str:
    """Find trtexec.

    Raises:
        MissingError: it is not installed.
    """
    for candidate in [named] if named else ["trtexec", JETPACK]:
        if path := shutil.which(candidate):
            return path
    raise MissingError(
        "trtexec was not found.",
        f"{named} is not a program." if named else f"It is neither on PATH nor at {JETPACK}.",
        "Pass its path with --trtexec. JetPack and TensorRT's tar and Debian packages include it, pip does not.",
    )


def run(trtexec: str, plan: Path, protocol: str, seconds: int, inputs: Arrays) -> dict[str, Times]:
    """Run trtexec on the network input of one frame and read its times (`read_times`).

    Raises:
        DeviceError: trtexec failed.
    """
    help_text = subprocess.run([trtexec, "--help"], capture_output=True, text=True, check=False).stdout
    with TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{index}.bin" for index, name in enumerate(inputs)}
        for name, file in files.items():
            inputs[name].tofile(file)
        written = Path(folder) / "times.json"
        command = [
            trtexec,
            f"--loadEngine={plan}",
            f"--loadInputs={','.join(f'{name}:{file}' for name, file in files.items())}",
            f"--exportTimes={written}",
            f"--warmUp={WARM_UP_MS}",
            f"--duration={seconds}",
            *FLAGS[protocol][SINCE_11 in help_text],
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            errors = [line for line in (ended.stdout + ended.stderr).splitlines() if "[E]" in line]
            what, why = (
                f"trtexec failed with {ended.returncode} on {plan}.",
                errors[-1] if errors else "It gave no reason.",
            )
            raise DeviceError(what, why, f"Run it yourself: {trtexec} --loadEngine={plan} --verbose")
        return read_times(written)


def work(words: Sequence[str] | None, stack: ExitStack) -> None:
    options = parser(__doc__)
    options.add_argument("plan", help="a TensorRT engine of mde build")
    options.add_argument("--protocol", choices=tuple(FLAGS), default="trtexec-10", help="(trtexec-10)")
    options.add_argument("--trtexec", help="path of trtexec (on PATH, or in /usr/src/tensorrt/bin)")
    options.add_argument("--seconds", type=positive, default=3, help="duration of each trtexec run (3)")
    options.add_argument("--frames", type=positive, default=200, help="frames of each mde bench run (200)")
    options.add_argument("--rounds", type=positive, default=3, help="alternating runs of each (3)")
    arguments = options.parse_args(words)
    if Path(arguments.plan).suffix not in (".plan", ".engine"):
        raise OptionError(
            f"{arguments.plan} is not an engine.", "trtexec is run on engines only.", "Build one with mde build."
        )
    trtexec = find_trtexec(arguments.trtexec)
    candidate, path = open_ours(arguments.plan, SessionOptions(), stack)
    config = BenchConfig(iterations=arguments.frames, protocol=arguments.protocol)
    frames = reference_frames()
    image = candidate.predictor.prepare(camera_frames(frames, config)[0])
    ours, theirs = [], []
    for _ in range(arguments.rounds):
        ours += bench([candidate], frames, config)
        theirs.append(run(trtexec, path, arguments.protocol, arguments.seconds, image))
    latencies = {
        "mde bench": np.concatenate([result.frames_ms for result in ours]),
        "trtexec": np.concatenate([times["latencyMs"] for times in theirs]),
    }
    rows = []
    for name, latency_ms in latencies.items():
        stats = summarise(latency_ms)
        p50 = "{:.3f} ({:.3f} to {:.3f})".format(stats.p50_ms, *stats.p50_interval_ms)
        rows.append((name, p50, f"{stats.p99_ms:.3f}", str(stats.samples)))
    parts = {
        "mde bench": [np.median([result.device_stages[name].p50_ms for result in ours]) for name in DEVICE_STAGES],
        "trtexec": [np.median(np.concatenate([times[name] for times in theirs])) for name in PARTS],
    }
    ratio = ratio_interval(latencies["trtexec"], latencies["mde bench"], paired=False)
    notes = [f"trtexec: {ratio.describe('as mde bench')}"]
    for name, medians in parts.items():
        notes.append(f"{name}, p50 ms: {', '.join(map('{} {:.3f}'.format, DEVICE_STAGES, medians))}")
    notes.append(f"{path.name} on {ours[0].device}: {ours[0].boundary}")
    print_table(Table(header=("timer", "p50 ms (95 %)", "p99 ms", "queries"), rows=tuple(rows), notes=tuple(notes)))


def main(words: Sequence[str] | None = None) -> int:
    return run_script(work, words)


if __name__ == "__main__":
    sys.exit(main())
