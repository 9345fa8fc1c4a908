"""Several artefacts timed in turn, in one process: python benchmarks/in_turn.py A B ... [--frames N]

On a shared machine two runs one after the other meet two machines. Here frame i goes through each artefact
before frame i + 1 does, so that what disturbs one disturbs all; quote the ratios to the first rather than
the milliseconds. Frames and boundary are those of `mde bench`: uint8 640x480 in host memory to metres there.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np

from mirrordepth_edge.bench.measure import time_calls
from mirrordepth_edge.deploy.parity import reference_frames
from mirrordepth_edge.errors import MdeError
from mirrordepth_edge.preprocess import resize_frame
from mirrordepth_edge.runtime import load, model_path

WARMUP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefacts", nargs="+", help="checkpoints, ONNX files, engines")
    parser.add_argument("--frames", type=int, default=200)
    arguments = parser.parse_args()
    frames = [np.ascontiguousarray(resize_frame(frame, (480, 640))) for frame in reference_frames()]
    with contextlib.ExitStack() as stack:
        predictors = [stack.enter_context(load(model_path(Path(each)))) for each in arguments.artefacts]

        def turn(step: int) -> object:
            which = step % len(predictors)
            return predictors[which](frames[step // len(predictors) % len(frames)])

        samples_ms = time_calls(turn, arguments.frames * len(predictors), WARMUP * len(predictors))
    by_artefact = samples_ms.reshape(arguments.frames, len(predictors)).T
    print(f"{'artefact':28} {'backend':12} {'p50 ms':>8} {'p90 ms':>8} {'min ms':>8} {'of the first':>13}")
    for name, predictor, own in zip(arguments.artefacts, predictors, by_artefact, strict=True):
        p50, p90 = np.percentile(own, (50, 90))
        ratio = np.median(own / by_artefact[0])
        backend = predictor.session.backend
        print(f"{Path(name).name:28} {backend:12} {p50:8.2f} {p90:8.2f} {own.min():8.2f} {ratio:13.2f}")


if __name__ == "__main__":
    try:
        main()
    except MdeError as error:
        sys.exit(str(error))
