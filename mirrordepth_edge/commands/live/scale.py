"""The scale of `mde live`'s camera: its options, and how it is measured, applied, kept and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

if TYPE_CHECKING:
    from mirrordepth_edge.camera.model import Camera, Lens
    from mirrordepth_edge.camera.scale import KnownPoint, KnownScale, ScaleKey, ScaleSetter
    from mirrordepth_edge.config import ModelConfig, SizeHW
    from mirrordepth_edge.imaging.postprocess import DepthMap
    from mirrordepth_edge.imaging.preprocess import Frame
    from mirrordepth_edge.sources.open import FrameSource

SetScale = Annotated[
    list[str] | None,
    typer.Option(metavar="X,Y=D", help="A pixel whose distance is known, such as 320,240=1.85m; kept for this camera."),
]
NoScale = Annotated[bool, typer.Option("--no-scale", help="Leave the scale aside that is kept for this camera.")]
ForgetScale = Annotated[bool, typer.Option("--forget-scale", help="Forget the scale that is kept for this camera.")]

FRAMES = 15
"""Over which a camera's depth is taken, as networks flicker."""
SETTLING = 15
"""Frames before that: a camera's exposure has to settle."""


class Scaled(Protocol):
    """What is used of a `DepthPredictor`."""

    camera: Camera | Lens | None
    scales: dict[SizeHW, float]
    known_scale: Callable[[SizeHW], float | None]

    @property
    def model(self) -> ModelConfig: ...
    def __call__(self, frame: Frame) -> DepthMap: ...
    def scale(self, size_hw: SizeHW) -> float: ...


class LiveScale:
    """Known distances of a camera that `mde live` shows.

    Args:
        source, model: as given on the command line.
        opens: opens the source, in the mode that is to be shown.
    """

    def __init__(self, predictor: Scaled, source: str, model: str, opens: Callable[[], FrameSource]) -> None:
        from mirrordepth_edge.camera.scale import ScaleStore, camera_identity

        self._predictor = predictor
        self._opens = opens
        self._camera = camera_identity(source)
        self._model = model
        self._store = ScaleStore()

    @cached_property
    def _checkpoint(self) -> str:
        from mirrordepth_edge.artefact import model_path
        from mirrordepth_edge.camera.scale import checkpoint_sha256

        return checkpoint_sha256(model_path(self._model))

    def setter(self, size_hw: SizeHW) -> ScaleSetter:
        """What takes points in frames of this size, for a window or a page."""
        from mirrordepth_edge.camera.scale import ScaleSetter, camera_at

        def apply(factor: float) -> None:
            self._predictor.scales[size_hw] = factor

        lens = camera_at(self._predictor.camera, self._predictor.model, size_hw)
        return ScaleSetter(self._store, self._key(size_hw), apply, lens)

    def use_kept(self) -> None:
        """Apply what is kept, and say so, at the first frame of each size."""
        from mirrordepth_edge.commands.terminal import errors

        def look_up(size_hw: SizeHW) -> float | None:
            known = self._camera in self._store.cameras()  # most are not, and need no hash of the model
            scale = self._store.get(self._key(size_hw)) if known else None
            if scale is None:
                return None
            errors.print(f"scale: {scale}, kept for {self._camera}; --no-scale leaves it aside")
            return scale.factor

        self._predictor.known_scale = look_up

    def forget(self) -> None:
        """Forget what is kept, for frames of all sizes, and say so."""
        from mirrordepth_edge.commands.terminal import errors

        there = self._store.forget(self._camera, self._checkpoint)
        errors.print(f"scale: {'forgotten' if there else 'none was kept'} for {self._camera}")

    def measure(self, points: tuple[KnownPoint, ...]) -> KnownScale:
        """Set the scale from the source's first frames, and say so; the source is opened for it, and closed."""
        from mirrordepth_edge.commands.terminal import errors
        from mirrordepth_edge.errors import InputError

        with self._opens() as opened:
            for _ in range(SETTLING if opened.live else 0):
                opened.read()
            frame = opened.read()
            if frame is None:
                raise InputError(f"{opened.name} holds too few frames.", "It ended at once.", "Pass another source.")
            size_hw = frame.shape[0], frame.shape[1]
            setter = self.setter(size_hw)
            scale = setter.add(points, self._depths(opened, frame), self._predictor.scale(size_hw))
        errors.print(f"scale: {scale}, kept for {self._camera} at {size_hw[1]}x{size_hw[0]} in {self._store.path}")
        if setter.camera is None:
            errors.print("note: the lens is not known, so distances were taken as straight ahead", style="yellow")
        return scale

    def _depths(self, opened: FrameSource, first: Frame) -> Iterator[DepthMap]:
        yield self._predictor(first)
        for _ in range(FRAMES - 1 if opened.live else 0):  # a point named in a video is one of its first picture
            if (frame := opened.read()) is not None:
                yield self._predictor(frame)

    def _key(self, size_hw: SizeHW) -> ScaleKey:
        from mirrordepth_edge.camera.scale import ScaleKey

        return ScaleKey(camera=self._camera, frame_hw=size_hw, checkpoint_sha256=self._checkpoint)


def use_scale(scale: LiveScale, set_scale: list[str] | None, no_scale: bool, forget_scale: bool) -> None:
    """Do what the three options say, before the loop starts.

    Raises:
        OptionError: they exclude one another, or a point cannot be used.
        InputError: the source or the store cannot be used.
    """
    from mirrordepth_edge.camera.scale import parse_known
    from mirrordepth_edge.errors import OptionError

    if set_scale and no_scale:
        why = "One sets what the other leaves aside."
        raise OptionError("--set-scale and --no-scale exclude one another.", why, "--set-scale alone")
    points = parse_known(set_scale) if set_scale else ()
    if forget_scale:
        scale.forget()
    if points:
        scale.measure(points)
    elif not no_scale:
        scale.use_kept()
