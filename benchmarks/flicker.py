"""What `stabilise.Stabiliser` does to flicker, to errors and to the time a frame takes.

    python benchmarks/flicker.py FOLDER --units-per-metre 5000     # consecutive pictures with depth, in order
    python benchmarks/flicker.py FOLDER --pan 8                    # each picture a video of a camera that turns
    python benchmarks/flicker.py                                   # a drawn scene with simulated flicker, no network
    python benchmarks/flicker.py FOLDER --vary pixel_s=0.3 --vary flicker=0.3

All at the network's size: OPW and rTC along optical flow, AbsRel as it comes and with each picture scaled to the true
median, boundary F1 of pixels 8 apart. Network and stabiliser are timed in turn, frame by frame, each on --threads
threads; on a machine that others use too, quote the ratio.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from common import ends, positive

from mirrordepth_edge.commands.terminal import print_table
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.consistency import FlowMeter
from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.edges import boundary_f1
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.evaluation import align
from mirrordepth_edge.metrics import Depth, depth_metrics, valid_mask
from mirrordepth_edge.preprocess import Frame, resize_frame
from mirrordepth_edge.report.tables import Table
from mirrordepth_edge.runtime import DepthPredictor, load
from mirrordepth_edge.stabilise import StabiliseConfig, Stabiliser

LIMITS_M = (1e-3, 10.0)
APART_PX = 8
SETTLED = 5
"""Errors count from this frame of a video on; OPW and rTC from the first pair."""
PAN_FRAMES = 40
PAN_SHARE = 0.75
"""Of a picture's width and height that the turning camera sees at once."""
DRAWN_HW, DRAWN_FRAMES = (224, 288), 60

Video = list[tuple[Frame, Depth, Depth]]
"""Frames, their depth as it was predicted and the true one, all of one size."""


@dataclass
class Figures:
    """One column of the table, gathered over frames and videos."""

    rows: list[tuple[float, float, float]] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    flow: list[tuple[float, float]] = field(default_factory=list)


def still_views(frame: Frame, depth_m: Depth, step_px: float) -> Iterator[tuple[Frame, Depth]]:
    """A window that slides over a picture to and fro, with a sensor's noise. A crop is as a longer lens: less depth."""
    height, width = frame.shape[:2]
    window_hw, rng = (round(height * PAN_SHARE), round(width * PAN_SHARE)), np.random.default_rng(0)
    room = width - window_hw[1]
    for index in range(PAN_FRAMES):
        left = room - abs(round(index * step_px) % (2 * room) - room)
        cut = np.s_[(height - window_hw[0]) // 2 :][: window_hw[0]], np.s_[left : left + window_hw[1]]
        noisy = frame[cut] + rng.normal(0, 2.5, (*window_hw, 3))
        yield noisy.clip(0, 255).astype(np.uint8), depth_m[cut] * np.float32(PAN_SHARE)


def drawn_scene() -> Video:
    """A textured card that crosses before a slanted wall that pans, exact depth, and flicker of scale and of dents."""
    rng, (height, width), video = np.random.default_rng(0), DRAWN_HW, []
    wall, card = (
        cv2.GaussianBlur(rng.normal(128, 400, (*hw, 3)), (0, 0), 2) for hw in ((height, width + DRAWN_FRAMES), (90, 70))
    )
    slant = np.broadcast_to(np.linspace(4.5, 3.5, height, dtype=np.float32)[:, None], DRAWN_HW)
    for index in range(DRAWN_FRAMES):
        frame, truth_m, left = wall[:, index : index + width].copy(), slant.copy(), 10 + 5 * index % (width - 90)
        frame[70:160, left : left + 70], truth_m[70:160, left : left + 70] = card, 1.5
        dents = cv2.resize(rng.normal(0, 0.02, (7, 9)), (width, height), interpolation=cv2.INTER_CUBIC)
        noisy = (frame + rng.normal(0, 2, frame.shape)).clip(0, 255).astype(np.uint8)
        video.append((noisy, (truth_m * np.exp(dents + rng.normal(0, 0.02))).astype(np.float32), truth_m))
    return video


def predicted(predictor: DepthPredictor, views: Iterator[tuple[Frame, Depth]], network_ms: list[float]) -> Video:
    """What the network makes of a video, at its own size."""
    video, (output,), size_hw = [], predictor.session.outputs, predictor.model.preprocess.size_hw
    for frame, truth_m in views:
        feeds = predictor.prepare(frame)
        start_s = perf_counter()
        depth_m = predictor.session.infer(feeds)[output.name][0]
        network_ms.append((perf_counter() - start_s) * 1e3)
        small_m = cv2.resize(truth_m, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
        video.append((resize_frame(frame, size_hw).copy(), depth_m.copy(), np.asarray(small_m, np.float32)))
    return video
