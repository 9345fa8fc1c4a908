"""Output files of `mde run`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from mirrordepth_edge.camera.pointcloud import camera_for, save_ply
from mirrordepth_edge.imaging.draw import save_npy, save_png, video_writer
from mirrordepth_edge.imaging.images import read_image
from mirrordepth_edge.imaging.postprocess import DepthMap, colourise, to_millimetres
from mirrordepth_edge.predictor import DepthPredictor
from mirrordepth_edge.sources.files import open_video

DEFAULT_RATE_HZ = 30.0
"""Rate of the colour video if the input does not state its own."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Predicts depth and writes it in the chosen formats; its methods return the line to print."""

    predictor: DepthPredictor
    folder: Path
    formats: frozenset[str]
    """Some of png, npy, colour and ply."""
    limits_m: tuple[float, float]
    """Range of the colour map, in metres."""

    def write_image(self, path: Path) -> str:
        """Write the depth of an image as `FOLDER/NAME.*`."""
        frame = read_image(path)
        # The camera comes first: without one, nothing is written.
        size_hw = frame.shape[0], frame.shape[1]
        model = self.predictor.model
        camera = camera_for(self.predictor.camera, model.focal, size_hw) if "ply" in self.formats else None
        depth_m = self.predictor(frame)
        target = self.folder / path.stem
        self._write_depth(depth_m, target)
        if "colour" in self.formats:
            save_png(Path(f"{target}.colour.png"), colourise(depth_m, self.limits_m))
        if camera is not None:
            save_ply(Path(f"{target}.ply"), depth_m, frame, camera)
        near, median, far = np.percentile(depth_m, (1, 50, 99))
        return f"{path}: median {median:.2f} m, nearest {near:.2f} m, farthest {far:.2f} m -> {target}.*"

    def write_video(self, path: Path, bar: Progress) -> str:
        """Write the depth of each frame into `FOLDER/NAME/`, and the colour video."""
        target, count, frame = self.folder / path.stem, 0, None
        with open_video(path) as source:
            task = bar.add_task(path.name, total=source.length)
            video = video_writer(Path(f"{target}.colour.mp4"), source.rate_hz or DEFAULT_RATE_HZ)
            with video if "colour" in self.formats else nullcontext() as append:
                while (frame := source.read(frame)) is not None:
                    depth_m = self.predictor(frame)
                    self._write_depth(depth_m, target / f"{count:06d}", durable=False)
                    if append is not None:
                        append(colourise(depth_m, self.limits_m))
                    count += 1
                    bar.update(task, completed=count)
            bar.remove_task(task)
        return f"{path}: {count} frames -> {target}*"

    def _write_depth(self, depth_m: DepthMap, target: Path, *, durable: bool = True) -> None:
        if "png" in self.formats:
            save_png(Path(f"{target}.depth.png"), to_millimetres(depth_m), durable=durable)
        if "npy" in self.formats:
            save_npy(Path(f"{target}.depth.npy"), depth_m, durable=durable)
