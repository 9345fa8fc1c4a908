"""Measure the effect of `temporal_filter.TemporalFilter` on flicker, errors and latency.

    python benchmarks/flicker.py FOLDER --units-per-metre 5000     # consecutive images with depth
    python benchmarks/flicker.py FOLDER --every 80 --pan 4         # a panned video of every 80th image
    python benchmarks/flicker.py                                   # a synthetic scene with simulated flicker
    python benchmarks/flicker.py FOLDER --vary pixel_s=0.3 --vary flicker=0.3

All metrics are at the network's size: OPW and rTC along optical flow, AbsRel without and with scaling to the true
median, boundary F1 of pixels 8 px apart. Network and filters are timed interleaved, frame by frame. The cost is a share
of the network's time, which other load affects less than milliseconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from peers.common import add_device_options, parser, positive, run_script

from mirrordepth_edge.commands.terminal import print_table
from mirrordepth_edge.config import DataConfig, SessionOptions
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.evaluation.consistency import FlowMeter
from mirrordepth_edge.evaluation.edges import boundary_f1
from mirrordepth_edge.evaluation.evaluate import align
from mirrordepth_edge.evaluation.metrics import Depth, clamp_depth, depth_metrics, valid_mask
from mirrordepth_edge.imaging.preprocess import Frame, resize_frame
from mirrordepth_edge.imaging.temporal_filter import TemporalFilter, TemporalFilterConfig
from mirrordepth_edge.predictor import DepthPredictor, load
from mirrordepth_edge.report.tables import Table

LIMITS_M = (1e-3, 10.0)
APART_PX = 8
SETTLED = 5
"""First frame of a video that counts for errors; OPW and rTC count from the first pair."""
FRAMES = 45
"""Length of a generated video."""
WINDOW = 0.75
"""Size of the panned window relative to the image."""
DRAWN_HW = (224, 288)
Figures = npt.NDArray[np.float64]
HEADER = ("depth", "OPW (m)", "share", "rTC", "AbsRel", "scaled", "F1", "p50 ms", "cost")


class Shot(NamedTuple):
    """A frame with its predicted and true depth, at the network's size."""

    frame: Frame
    depth_m: Depth
    truth_m: Depth
    network_ms: float


def pan_image(frame: Frame, depth_m: Depth, step_px: float) -> Iterator[tuple[Frame, Depth]]:
    """Move a window back and forth over an image, with sensor noise; depth shrinks with the field of view."""
    (height, width), rng = frame.shape[:2], np.random.default_rng(0)
    rows, columns, room = round(height * WINDOW), round(width * WINDOW), width - round(width * WINDOW)
    top = (height - rows) // 2
    for index in range(FRAMES):
        left = room - abs(round(index * step_px) % (2 * room) - room)
        window = np.s_[top : top + rows, left : left + columns]
        noisy = frame[window] + rng.normal(0, 2.5, (rows, columns, 3))
        yield noisy.clip(0, 255).astype(np.uint8), depth_m[window] * np.float32(WINDOW)


def draw_scene() -> Iterator[Shot]:
    """Draw a textured card in front of a slanted, panning wall, with flicker of scale and of smooth deformations."""
    rng, (height, width) = np.random.default_rng(0), DRAWN_HW
    wall, card = (
        cv2.GaussianBlur(rng.normal(128, 400, (*hw, 3)), (0, 0), 2) for hw in ((height, width + FRAMES), (90, 70))
    )
    for index in range(FRAMES):
        frame, left = wall[:, index : index + width].copy(), 10 + 5 * index % (width - 90)
        truth_m = np.repeat(np.linspace(4.5, 3.5, height, dtype=np.float32)[:, None], width, axis=1)
        frame[70:160, left : left + 70], truth_m[70:160, left : left + 70] = card, 1.5
        dents = cv2.resize(rng.normal(0, 0.02, (7, 9)), (width, height), interpolation=cv2.INTER_CUBIC)
        noisy = (frame + rng.normal(0, 2, frame.shape)).clip(0, 255).astype(np.uint8)
        yield Shot(noisy, (truth_m * np.exp(dents + rng.normal(0, 0.02))).astype(np.float32), truth_m, 0.0)


def predict_video(predictor: DepthPredictor, video: Iterator[tuple[Frame, Depth]]) -> Iterator[Shot]:
    """Run the network on a video."""
    size_hw = predictor.model.size_hw
    for frame, truth_m in video:
        feeds, begin_s = predictor.prepare(frame), perf_counter()
        (depth_m,) = predictor.session.infer(feeds).values()
        network_ms = (perf_counter() - begin_s) * 1e3
        small_m = np.asarray(cv2.resize(truth_m, size_hw[::-1], interpolation=cv2.INTER_NEAREST), np.float32)
        yield Shot(resize_frame(frame, size_hw), depth_m[0], small_m, network_ms)


def measure(video: Iterator[Shot], configs: Sequence[TemporalFilterConfig], hz: float) -> tuple[Figures, Figures]:
    """Measure one video without a filter and with each config.

    Returns:
        OPW, rTC, AbsRel, AbsRel scaled and F1, `[1 + configs, 5]`, NaN if undefined; and the times of the
        network and of each config, milliseconds, `[frames, 1 + configs]`.
    """
    filters, meter, errors, took_ms = [TemporalFilter(config) for config in configs], FlowMeter(), [], []
    for index, shot in enumerate(video):
        depths, took = [shot.depth_m.copy()], [shot.network_ms]
        for temporal_filter in filters:
            begin_s = perf_counter()
            depths.append(temporal_filter(shot.frame, depths[0], index / hz))
            took.append((perf_counter() - begin_s) * 1e3)
        meter.add(shot.frame, *depths)
        took_ms.append(took)
        if index >= SETTLED:
            errors.append([errors_of(depth_m, shot.truth_m) for depth_m in depths])
    along_flow = [(np.nan, np.nan) if one is None else (one.error_m, one.rtc) for one in meter.results()]
    return np.hstack([along_flow, mean_known(errors)]), np.array(took_ms)


def errors_of(depth_m: Depth, truth_m: Depth) -> tuple[float, float, float]:
    valid = valid_mask(truth_m, LIMITS_M)
    scaled_m = align(depth_m, truth_m, valid, "median")
    plain, scaled = (depth_metrics(metres, truth_m, limits_m=LIMITS_M).abs_rel for metres in (depth_m, scaled_m))
    edges = boundary_f1(clamp_depth(depth_m, LIMITS_M), truth_m, valid, apart_px=APART_PX)
    return plain, scaled, np.nan if edges is None else edges.f1


def mean_known(figures: Sequence[object]) -> Figures:
    """Average over the first axis, without NaN."""
    known = np.ma.masked_invalid(np.asarray(figures, np.float64))
    return np.asarray(known.mean(axis=0).filled(np.nan))


def run(words: Sequence[str] | None, stack: ExitStack) -> None:
    arguments = parse_options(words)
    videos = [draw_scene()] if arguments.folder is None else predict_videos(arguments, stack)
    measured = [
        measure(video, [TemporalFilterConfig(), *map(parse_variation, arguments.vary)], arguments.hz)
        for video in videos
    ]
    figures = mean_known([metrics for metrics, _ in measured])
    times_ms = np.median(np.concatenate([took_ms for _, took_ms in measured]), axis=0)
    rows = []
    for name, (opw_m, *others), ms in zip(("unfiltered", "filtered", *arguments.vary), figures, times_ms, strict=True):
        of_network = f"{ms / times_ms[0]:.1%}" if times_ms[0] else ""
        rows.append((name, f"{opw_m:.4f}", f"{opw_m / figures[0, 0]:.0%}", *map("{:.4f}".format, others)))
        rows[-1] += (f"{ms:.2f}", of_network)
    frames = sum(len(took_ms) for _, took_ms in measured)
    note = f"{frames} frames, videos: {len(measured)}, at {arguments.hz:g} Hz; the first row has the network's time."
    print_table(Table(header=HEADER, rows=tuple(rows), notes=(note,)))


def predict_videos(arguments: argparse.Namespace, stack: ExitStack) -> Iterator[Iterator[Shot]]:
    dataset = choose_dataset(DataConfig(root=arguments.folder, units_per_metre=arguments.units_per_metre), "test")
    samples = (dataset[index] for index in range(0, len(dataset), arguments.every))
    views = ((sample.frame, sample.depth_m) for sample in samples)
    predictor = stack.enter_context(
        load(arguments.model, SessionOptions(device=arguments.device, threads=arguments.threads))
    )
    if arguments.pan is None:
        yield predict_video(predictor, views)
    else:
        yield from (predict_video(predictor, pan_image(*view, arguments.pan)) for view in views)


def parse_variation(words: str) -> TemporalFilterConfig:
    name, _, value = words.partition("=")
    try:
        return replace(TemporalFilterConfig(), **{name: float(value)})
    except (TypeError, ValueError) as error:
        known = ", ".join(setting.name for setting in fields(TemporalFilterConfig))
        raise OptionError(
            f"--vary {words} is not a valid setting.", f"The settings are {known}.", "--vary pixel_s=0.3"
        ) from error


def parse_options(words: Sequence[str] | None) -> argparse.Namespace:
    options = add_device_options(parser(__doc__))
    options.add_argument("folder", nargs="?", type=Path, help="images with depth, as for mde evaluate")
    options.add_argument("--model", default="nano", help="model (nano)")
    options.add_argument("--units-per-metre", type=float, help="units of the depth files")
    options.add_argument("--every", type=positive, default=1, help="use every Nth image (1)")
    options.add_argument("--pan", type=float, help="pan over each image by this many pixels per frame")
    options.add_argument("--hz", type=float, default=30.0, help="frames per second (30)")
    options.add_argument("--vary", action="append", default=[], metavar="NAME=VALUE", help="a setting to compare")
    return options.parse_args(words)


if __name__ == "__main__":
    sys.exit(run_script(run))
