"""`mde run`: depth of pictures and videos, written to files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import NANO, ClipWeights, Device, Far, Model, Near, announce, session_options

if TYPE_CHECKING:
    from rich.progress import Progress

    from mirrordepth_edge.postprocess import DepthMap
    from mirrordepth_edge.runtime import DepthPredictor

FORMATS = ("png", "npy", "colour")
OUTPUT_ENDINGS = (".depth.png", ".colour.png")  # of an earlier run: passed over in a folder of pictures
VIDEO_RATE_HZ = 30.0  # where a video does not tell its own


def run(
    files: Annotated[list[Path], typer.Argument(help="Pictures, videos, or folders of pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path("depth"),
    model: Model = NANO,
    device: Device = "auto",
    near: Near = None,
    far: Far = None,
    formats: Annotated[str, typer.Option(help="What to write.")] = ",".join(FORMATS),
    clip_weights: ClipWeights = None,
) -> None:
    """Write the metric depth of pictures and videos.

    A picture gives NAME.depth.png (16-bit millimetres), NAME.depth.npy (float32 metres) and
    NAME.colour.png; a video gives NAME/000000.depth.png and .npy for each frame, and NAME.colour.mp4.
    """
    from mirrordepth_edge.commands.terminal import console, progress_bar
    from mirrordepth_edge.data.sample import PICTURE_SUFFIXES
    from mirrordepth_edge.draw import colour_limits
    from mirrordepth_edge.runtime import load

    kinds = _kinds(formats)
    paths = _inputs(files)
    lines = []
    try:
        with load(model, session_options(device, clip_weights)) as predictor, progress_bar() as bar:
            announce(predictor, model)
            limits_m = colour_limits(near, far, predictor.model.depth_limits_m)
            writer = _Writer(predictor=predictor, folder=output, kinds=kinds, limits_m=limits_m)
            for path in bar.track(paths, description="files"):
                is_picture = path.suffix.lower() in PICTURE_SUFFIXES
                lines.append(writer.picture(path) if is_picture else writer.video(path, bar))
    finally:  # after the bar, which they would tear; and even if a later file is bad
        for line in lines:
            console.print(line)


def _kinds(formats: str) -> set[str]:
    from mirrordepth_edge.errors import OptionError

    kinds = {kind.strip() for kind in formats.split(",")}
    if unknown := sorted(kinds - {*FORMATS}):
        why = f"The formats are {', '.join(FORMATS)}."
        raise OptionError(f"There is no format {unknown[0]!r}.", why, "--formats png,colour")
    return kinds


def _inputs(files: list[Path]) -> list[Path]:
    """The files to read, folders expanded to their pictures; all of them exist."""
    from mirrordepth_edge.data.sample import PICTURE_SUFFIXES
    from mirrordepth_edge.errors import InputError
    from mirrordepth_edge.files import existing_file

    paths: list[Path] = []
    for path in files:
        inside = sorted(path.iterdir()) if path.is_dir() else []
        pictures = [p for p in inside if p.suffix.lower() in PICTURE_SUFFIXES]
        pictures = [p for p in pictures if not p.name.endswith(OUTPUT_ENDINGS)]
        if path.is_dir() and not pictures:
            why = f"None of its files ends in {', '.join(PICTURE_SUFFIXES)}."
            raise InputError(f"There are no pictures in {path}.", why, "Name another folder, or files.")
        paths += pictures or [existing_file(path, "picture or video")]
    seen: dict[str, Path] = {}
    for path in paths:
        if (other := seen.setdefault(path.stem.casefold(), path)) != path:  # some file systems ignore case
            what = f"{other} and {path} would overwrite each other's results."
            why = "Results carry the file's name without its ending."
            raise InputError(what, why, "Run them apart, each with its own -o, or rename one.")
    return paths


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Predicts files and writes what was asked for; its methods return the line to print."""

    predictor: DepthPredictor
    folder: Path
    kinds: set[str]
    limits_m: tuple[float, float]

    def picture(self, path: Path) -> str:
        import numpy as np

        from mirrordepth_edge.data.sample import read_picture
        from mirrordepth_edge.draw import save_png
        from mirrordepth_edge.postprocess import colourise

        depth_m = self.predictor(read_picture(path))
        target = self.folder / path.stem
        self._write(depth_m, target)
        if "colour" in self.kinds:
            save_png(Path(f"{target}.colour.png"), colourise(depth_m, self.limits_m))
        near, median, far = np.percentile(depth_m, (1, 50, 99))
        return f"{path}: median {median:.2f} m, nearest {near:.2f} m, farthest {far:.2f} m -> {target}.*"

    def video(self, path: Path, bar: Progress) -> str:
        from contextlib import nullcontext

        from mirrordepth_edge.draw import saved_video
        from mirrordepth_edge.live.sources import open_video
        from mirrordepth_edge.postprocess import colourise

        target, count, frame = self.folder / path.stem, 0, None
        with open_video(path) as source:
            task = bar.add_task(path.name, total=source.length)
            colours = saved_video(Path(f"{target}.colour.mp4"), source.rate_hz or VIDEO_RATE_HZ)
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
        from mirrordepth_edge.draw import save_npy, save_png
        from mirrordepth_edge.postprocess import to_millimetres

        if "png" in self.kinds:
            save_png(Path(f"{target}.depth.png"), to_millimetres(depth_m), durable=durable)
        if "npy" in self.kinds:
            save_npy(Path(f"{target}.depth.npy"), depth_m, durable=durable)
