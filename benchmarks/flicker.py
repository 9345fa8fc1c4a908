"""What steadying is worth: flicker and errors of a model on pictures in order, before and after.

    python benchmarks/flicker.py FOLDER [--model nano] [--rate 30]

FOLDER is as `mde evaluate` reads it: pictures with measured depth, whose order of names is that of time. Flicker is
OPW and rTC along optical flow (`consistency`), errors are AbsRel, metric and with each picture scaled by its median;
all at the network's size. What the filter costs is timed beside the network, frame by frame.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
import numpy.typing as npt
from rich.progress import track

from mirrordepth_edge.commands.terminal import console, print_table
from mirrordepth_edge.config import DataConfig
from mirrordepth_edge.consistency import FlowMeter
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.runtime import load
from mirrordepth_edge.stabilise import Stabiliser

NAMES = ("as predicted", "steadied")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano", help="as of mde live (nano)")
    parser.add_argument("--rate", type=float, default=30.0, help="pictures a second (30)")
    parser.add_argument("--units-per-metre", type=float, help="of the depth files (1000)")
    told = parser.parse_args()

    dataset = choose_dataset(DataConfig(root=told.folder, units_per_metre=told.units_per_metre), "test")
    stabiliser, flicker = Stabiliser(), FlowMeter()
    errors: list[list[tuple[float, float]]] = [[], []]
    network_ms, filter_ms = [], []
    with load(told.model) as predictor:
        (depth,) = predictor.session.outputs
        for number in track(range(len(dataset)), description="predicting"):
            sample = dataset[number]
            feeds = predictor.prepare(sample.frame)
            image = next(iter(feeds.values()))[0]
            begun = perf_counter()
            raw_m = predictor.session.infer(feeds)[depth.name][0]
            middle = perf_counter()
            steady_m = stabiliser(image, raw_m, number / told.rate)
            network_ms.append((middle - begun) * 1e3)
            filter_ms.append((perf_counter() - middle) * 1e3)
            flicker.add(image, raw_m, steady_m)
            true_m = cv2.resize(sample.depth_m, raw_m.shape[::-1], interpolation=cv2.INTER_NEAREST)
            for own, predicted_m in zip(errors, (raw_m, steady_m), strict=True):
                own.append(abs_rel(predicted_m, true_m))
    rows = []
    for name, own, result in zip(NAMES, errors, flicker.results(), strict=True):
        metric, scaled = np.nanmean(own, axis=0)
        rows.append((name, f"{result.opw_m:.4f}", f"{result.rtc:.4f}", f"{metric:.4f}", f"{scaled:.4f}"))
    print_table(Table(header=("depth", "OPW (m)", "rTC", "AbsRel", "AbsRel, scaled"), rows=tuple(rows)))
    share = np.median(filter_ms) / np.median(network_ms)
    console.print(f"{len(dataset)} pictures; the filter takes {share:.0%} of the network's time (medians)")


def abs_rel(predicted_m: npt.NDArray[np.float32], true_m: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Metric, and scaled by the ratio of medians; NaN where nothing was measured."""
    valid = true_m > 0
    if not valid.any():
        return np.nan, np.nan
    predicted, true = predicted_m[valid].astype(np.float64), true_m[valid].astype(np.float64)
    scaled = predicted * np.median(true) / np.median(predicted)
    return float(np.mean(np.abs(predicted - true) / true)), float(np.mean(np.abs(scaled - true) / true))


if __name__ == "__main__":
    main()
