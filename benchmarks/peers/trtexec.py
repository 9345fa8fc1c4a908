"""TensorRT's own trtexec beside ours, on the same engine, in turn. Not yet run on hardware.

    python benchmarks/peers/trtexec.py depth.plan --protocol trtexec-10

What trtexec counts when it is told nothing changed with TensorRT 11 (samples/common/sampleOptions.h and .cpp of
github.com/NVIDIA/TensorRT, tags v10.9.0 and v11.1, class InferenceOptions):

- up to 10: copies to and from the GPU, no CUDA graph, blocking synchronisation;
- since 11: no copies, a CUDA graph, spin wait (`--includeDataTransfers --noCudaGraph --noSpinWait` undo them).

Both warm up for 200 ms and measure for 3 s. Whichever trtexec is here is told the flags that make it count as
--protocol says, and ours counts the same: the GPU's own times of copies and compute, or of compute alone. Two
things stay different: trtexec puts the next query's copy under the present one's compute, and ours uses no graph.
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
from common import ends, open_ours, parser, positive

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
"""Where JetPack and the Debian packages put it, which is not on PATH."""
SINCE_11 = "--includeDataTransfers"
"""An option that only trtexec 11 and later offers."""
# By protocol: what to tell a trtexec up to 10, and one since 11.
FLAGS = {
    "trtexec-10": ((), (SINCE_11, "--noCudaGraph", "--noSpinWait")),
    "trtexec-11": (("--noDataTransfers", "--useCudaGraph", "--useSpinWait"), ()),
}
WARM_UP_MS = 200


def find(named: str | None) -> str:
    """The trtexec to run.

    Raises:
        MissingError: there is none.
    """
    for place in [named] if named else ["trtexec", JETPACK]:
        if found := shutil.which(place):
            return found
    raise MissingError(
        "trtexec is not here.",
        f"{named} is no program." if named else f"It is neither on PATH nor {JETPACK}.",
        "Name it with --trtexec; it comes with JetPack and with TensorRT's tar and Debian packages, not with pip.",
    )


def run(trtexec: str, plan: Path, protocol: str, seconds: int, inputs: Arrays) -> dict[str, Times]:
    """What trtexec measures (`read_times`) when it repeats one frame's network input.

    Raises:
        DeviceError: it failed.
    """
    offers = subprocess.run([trtexec, "--help"], capture_output=True, text=True, check=False).stdout
    with TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{place}.bin" for place, name in enumerate(inputs)}
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
            *FLAGS[protocol][SINCE_11 in offers],
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            said = [line for line in (ended.stdout + ended.stderr).splitlines() if "[E]" in line]
            what, why = f"trtexec failed with {ended.returncode} on {plan}.", said[-1] if said else "It gave no reason."
            raise DeviceError(what, why, f"Run it yourself: {trtexec} --loadEngine={plan} --verbose")
        return read_times(written)


def work(words: Sequence[str] | None, stack: ExitStack) -> None:
    options = parser(__doc__)
    options.add_argument("plan", help="an engine that mde build made for TensorRT")
    options.add_argument("--protocol", choices=tuple(FLAGS), default="trtexec-10", help="(trtexec-10)")
    options.add_argument("--trtexec", help="where it is (on PATH, or in /usr/src/tensorrt/bin)")
    options.add_argument("--seconds", type=positive, default=3, help="of each of trtexec's runs (3)")
    options.add_argument("--frames", type=positive, default=200, help="of each of ours (200)")
    options.add_argument("--rounds", type=positive, default=3, help="runs of each, in turn (3)")
    told = options.parse_args(words)
    if Path(told.plan).suffix not in (".plan", ".engine"):
        raise OptionError(f"trtexec loads no {told.plan} here.", "It is for engines.", "Make one with mde build.")
    trtexec = find(told.trtexec)
    candidate, path = open_ours(told.plan, SessionOptions(), stack)
    config = BenchConfig(iterations=told.frames, protocol=told.protocol)
    frames = reference_frames()
    image = candidate.predictor.prepare(camera_frames(frames, config)[0])
    ours, theirs = [], []
    for _ in range(told.rounds):
        ours += bench([candidate], frames, config)
        theirs.append(run(trtexec, path, told.protocol, told.seconds, image))
    latencies = {
        "mde bench": np.concatenate([each.frames_ms for each in ours]),
        "trtexec": np.concatenate([each["latencyMs"] for each in theirs]),
    }
    rows = []
    for name, times in latencies.items():
        stats = summarise(times)
        p50 = "{:.3f} ({:.3f} to {:.3f})".format(stats.p50_ms, *stats.p50_interval_ms)
        rows.append((name, p50, f"{stats.p99_ms:.3f}", str(stats.samples)))
    parts = {
        "mde bench": [np.median([each.device_stages[name].p50_ms for each in ours]) for name in DEVICE_STAGES],
        "trtexec": [np.median(np.concatenate([each[name] for each in theirs])) for name in PARTS],
    }
    ratio = ratio_interval(latencies["trtexec"], latencies["mde bench"], paired=False)
    notes = [f"trtexec: {ratio.describe('as mde bench')}"]
    for name, own in parts.items():
        notes.append(f"{name}, p50 ms: {', '.join(map('{} {:.3f}'.format, DEVICE_STAGES, own))}")
    notes.append(f"{path.name} on {ours[0].device}: {ours[0].boundary}")
    print_table(Table(header=("stopwatch", "p50 ms (95 %)", "p99 ms", "queries"), rows=tuple(rows), notes=tuple(notes)))


def main(words: Sequence[str] | None = None) -> int:
    return ends(work, words)


if __name__ == "__main__":
    sys.exit(main())
