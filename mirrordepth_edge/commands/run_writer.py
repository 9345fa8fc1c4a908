"""What `mde run` makes of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from mirrordepth_edge.imaging.postprocess import DepthMap
    from mirrordepth_edge.predictor import DepthPredictor

VIDEO_RATE_HZ = 30.0  # where a video does not tell its own


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Predicts files and writes what was asked for; its methods return the line to print."""

    predictor: DepthPredictor
    folder: Path
    kinds: set[str]
    limits_m: tuple[float, float]

    def picture(self, path: Path) -> str:
        import numpy as np

        from mirrordepth_edge.camera.pointcloud import camera_for, save_ply
        from mirrordepth_edge.imaging.draw import save_png
        from mirrordepth_edge.imaging.pictures import read_picture
        from mirrordepth_edge.imaging.postprocess import colourise

        frame = read_picture(path)
        points = "ply" in self.kinds  # the camera first: without one nothing is written
        size_hw = frame.shape[0], frame.shape[1]
        camera = camera_for(self.predictor.camera, self.predictor.model.focal, size_hw) if points else None
        depth_m = self.predictor(frame)
        target = self.folder / path.stem
        self._write(depth_m, target)
        if "colour" in self.kinds:
            save_png(Path(f"{target}.colour.png"), colourise(depth_m, self.limits_m))
        if camera is not None:
            save_ply(Path(f"{target}.ply"), depth_m, frame, camera)
        near, median, far = np.percentile(depth_m, (1, 50, 99))
        return f"{path}: median {median:.2f} m, nearest {near:.2f} m, farthest {far:.2f} m -> {target}.*"

    def video(self, path: Path, bar: Progress) -> str:
        from contextlib import nullcontext

        from mirrordepth_edge.imaging.draw import video_writer
        from mirrordepth_edge.imaging.postprocess import colourise
        from mirrordepth_edge.sources.open import open_video

        target, count, frame = self.folder / path.stem, 0, None
        with open_video(path) as source:
            task = bar.add_task(path.name, total=source.length)
            colours = video_writer(Path(f"{target}.colour.mp4"), source.rate_hz or VIDEO_RATE_HZ)
            with colours if "colour" in self.kinds else nullcontext() as append:
                while (frame := source.read(frame)) is not None:
                    depth_m = self.predictor(frame)
                    self._write(depth_m, target / f"{count:06d}", durable=False)
                    if append is not None:
                        append(colourise(depth_m, self.limits_m))
                    count += 1
                    bar.update(task, completed=count)
            bar.remove_task(task)
        return f"{path}: {count} frames -> {target}*"

    def _write(self, depth_m: DepthMap, target: Path, *, durable: bool = True) -> None:
        from mirrordepth_edge.imaging.draw import save_npy, save_png
        from mirrordepth_edge.imaging.postprocess import to_millimetres

        if "png" in self.kinds:
            save_png(Path(f"{target}.depth.png"), to_millimetres(depth_m), durable=durable)
        if "npy" in self.kinds:
            save_npy(Path(f"{target}.depth.npy"), depth_m, durable=durable)
