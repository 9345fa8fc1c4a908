"""Calibration sets: the pictures that INT8 ranges are taken from, named by a recipe and never copied into it.

A recipe is a TOML file with the names and hashes of the frames, as `mde calibrate` writes it (`deploy/choose_frames.py`
chooses them). What the network is fed is kept in the user's cache as one file of uint8 for each input size, so that a
set is decoded once, and outlives its pictures on a machine that has used it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from mirrordepth_edge import __version__
from mirrordepth_edge.config import InputKind, PreprocessConfig, Strict
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.pictures import read_picture
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor, normalise
from mirrordepth_edge.recipes import load_recipe, recipe_folder
from mirrordepth_edge.sources.files import video_frames
from mirrordepth_edge.support.cache import user_cache
from mirrordepth_edge.support.files import atomic_write, sha256_of

KIND: Final = "calib"
RECIPE_VERSION: Final = 1
HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Selection(Strict):
    """How the frames were found."""

    method: Literal["farthest-point", "all"]
    model: str | None = None
    """Whose tower's features told pictures apart."""
    model_sha256: str | None = None
    found: int
    """Frames of the source; of a video, as it declares them."""
    candidates: int
    """Of these, spread evenly, so many were looked at."""


@dataclass(frozen=True, kw_only=True)
class Dropped(Strict):
    """Candidates that were not fit, by reason; the rest were not needed."""

    unreadable: int = 0
    uniform: int = 0
    """Black, or of nearly one brightness."""
    noise: int = 0
    """Neighbouring pixels hardly correlate: no camera's picture."""
    blurred: int = 0
    duplicate: int = 0
    """Hardly to be told from a frame that was kept."""

    def __str__(self) -> str:
        """Such as `2 noise, 1 blurred`; empty for none."""
        counts = ((getattr(self, each.name), each.name) for each in fields(self))
        return ", ".join(f"{count} {reason}" for count, reason in counts if count)


@dataclass(frozen=True, kw_only=True)
class Statistics(Strict):
    """What the chosen frames are like."""

    neighbour_correlation: float
    """Correlation of neighbouring pixels' brightness, 1 for smooth and 0 for noise; median of the frames."""
    least_neighbour_correlation: float


@dataclass(frozen=True, kw_only=True)
class ChosenFrame(Strict):
    """One frame: a file of a folder, or a frame of a video by its number."""

    file: str | None = None
    """Path below the source, with forward slashes."""
    sha256: str | None = None
    """Of the file's bytes."""
    number: int | None = None
    """From 0, of the frames that can be read."""

    def __post_init__(self) -> None:
        picture = self.file is not None and self.sha256 is not None and HASH.fullmatch(self.sha256) is not None
        video = self.number is not None and self.number >= 0
        if picture is video or (video and (self.file is not None or self.sha256 is not None)):
            raise ValueError("a frame has a file and its sha256, or a number")


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """What a recipe's file says."""

    schema_version: Literal[1] = RECIPE_VERSION
    name: str
    source: str
    """Folder or video, from the recipe's own folder on."""
    source_sha256: str | None = None
    """Of a video's bytes; None for a folder of pictures."""
    count: int
    seed: int
    selection: Selection
    dropped: Dropped
    statistics: Statistics | None = None
    frames: tuple[ChosenFrame, ...]
    """In order of their names or numbers."""

    def __post_init__(self) -> None:
        if not self.count == len(self.frames) > 0:
            raise ValueError(f"count is {self.count}, and frames are {len(self.frames)}; it takes one or more")
        keys = [frame.file if frame.number is None else frame.number for frame in self.frames]
        if len({type(key) for key in keys}) > 1 or keys != sorted(set(keys)):  # type: ignore[type-var]
            raise ValueError("frames are files or numbers, each once and in order")
        if isinstance(keys[0], int) is not (self.source_sha256 is not None):
            raise ValueError("a video has a source_sha256 and its frames have numbers; pictures have files")

    def text(self) -> str:
        """The recipe as TOML, a frame a line; the same recipe is always the same text."""
        whole = asdict(self)
        frames = whole.pop("frames")
        lines = [f"{key} = {_toml(value)}" for key, value in whole.items() if value is not None]
        return "\n".join([*lines, "frames = [", *(f"  {_toml(frame)}," for frame in frames), "]", ""])


def _toml(value: Any) -> str:
    """TOML of text, a number, or a table of these without what is None."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items() if each is not None) + " }"
    # JSON's strings are TOML's, but for the one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """A recipe and where it is; pictures are read when they are asked for."""

    path: Path
    """The recipe's file; the source is found from its folder on."""
    sha256: str
    """Of the recipe's bytes."""
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def count(self) -> int:
        """Frames in the set."""
        return self.recipe.count

    @property
    def source(self) -> Path:
        """The folder of pictures, or the video."""
        # Resolved first: a `..` after a link leads elsewhere than it reads.
        return Path(os.path.normpath(self.path.parent.resolve() / self.recipe.source))

    def frames(self) -> Iterator[Frame]:
        """The pictures themselves, uint8 RGB `[H, W, 3]` each, in the recipe's order.

        Raises:
            InputError: one is missing, or is not what the recipe names.
        """
        return self.some_frames(range(self.count))

    def some_frames(self, places: Container[int]) -> Iterator[Frame]:
        """Those pictures whose places in the recipe are among `places`, as `frames` gives them."""
        chosen = [frame for place, frame in enumerate(self.recipe.frames) if place in places]
        if self.recipe.source_sha256 is None:
            for frame in chosen:
                yield self._picture(frame)
            return
        self._check(self.source, self.recipe.source_sha256)
        numbers = {frame.number for frame in chosen if frame.number is not None}
        read = 0
        for _, picture in video_frames(self.source, numbers):
            read += 1
            yield picture
        if read != len(chosen):
            raise self._unusable(self.source, f"Only {read} of its {len(chosen)} frames can be read here.")

    def _picture(self, frame: ChosenFrame) -> Frame:
        assert frame.file is not None
        assert frame.sha256 is not None, "checked when the recipe was read"
        path = self.source / frame.file
        self._check(path, frame.sha256)
        return read_picture(path)

    def _check(self, path: Path, sha256: str) -> None:
        if not path.is_file():
            raise self._unusable(path, "There is no such file.")
        if sha256_of(path) != sha256:
            raise self._unusable(path, f"Its sha256 is not {sha256[:12]}…: it was changed or replaced.")

    def _unusable(self, path: Path, why: str) -> InputError:
        return InputError(f"{path} of the calibration set {self.name} cannot be used.", why, self.cure)

    @property
    def cure(self) -> str:
        """What makes the set anew."""
        again = f"mde calibrate --from {self.source} --count {self.count} --seed {self.recipe.seed} -o {self.path}"
        return f"Put it back as it was, or choose again: {again}"

    def images(self, preprocess: PreprocessConfig, io: InputKind = "uint8") -> Iterator[npt.NDArray[Any]]:
        """What a network is fed, frame by frame, without holding more than one. Each call begins anew.

        The first call for an input size reads every picture and keeps what comes of it (`shard`).

        Args:
            preprocess: of the network.
            io: `uint8` gives uint8 `[1, H, W, 3]`, RGB; `float` normalised float32 `[1, 3, H, W]`.

        Raises:
            InputError: at the call, as `shard` does.
        """
        return self._stream(self.shard(preprocess), preprocess, io)

    def _stream(self, shard: Path, preprocess: PreprocessConfig, io: InputKind) -> Iterator[npt.NDArray[Any]]:
        height, width = preprocess.size_hw
        file = _open_shard(shard, (self.count, height, width, 3))
        if file is None:
            raise InputError(f"{shard} is gone or damaged.", "Another program changed the cache.", "Try again.")
        with file:
            # Read rather than mapped: every page of a mapping that was touched counts as memory of this process.
            for _ in range(self.count):
                image = np.frombuffer(file.read(height * width * 3), np.uint8).reshape(1, height, width, 3)
                yield image if io == "uint8" else normalise(image[0], preprocess)

    def shard(self, preprocess: PreprocessConfig, on_frame: Callable[[int], object] = lambda count: None) -> Path:
        """The file of the set's images, uint8 `[count, H, W, 3]` as NumPy stores it; made where it is absent.

        It depends on the recipe's bytes, on the size and the way frames are fitted to it, and on this package's
        version, all of which are in its path. Where it exists, the pictures are not looked at.

        Args:
            on_frame: told how many frames are done while it is made.

        Raises:
            InputError: a picture is missing or changed; all of them are gone, and only images of another
                preprocessing are kept; or the cache cannot be written.
        """
        height, width = preprocess.size_hw
        folder = user_cache("calibration") / self.sha256[:16]
        path = folder / f"{height}x{width}.{preprocess.fit}.{__version__}.npy"
        shape = (self.count, height, width, 3)
        whole = _open_shard(path, shape)
        if whole is not None:
            whole.close()
            return path
        self._refuse_another_preprocessing(folder, path)
        prepare = Preprocessor(preprocess)
        with atomic_write(path, durable=False) as temporary, temporary.open("wb") as file:
            # Written rather than mapped: where the disk is full, that is an error and no crash.
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for done, frame in enumerate(self.frames(), 1):
                file.write(prepare(frame).tobytes())
                on_frame(done)
        return path

    def _refuse_another_preprocessing(self, folder: Path, wanted: Path) -> None:
        """Where the pictures are gone, images of another size say better than they what is the matter."""
        pictures = [self.source / (frame.file or "") for frame in self.recipe.frames]
        others = sorted(shard.stem for shard in folder.glob("*.npy") if shard != wanted)
        if any(picture.is_file() for picture in pictures) or not others:
            return
        kept, size = others[0].split(".")[0], wanted.stem.split(".")[0]
        raise InputError(
            f"The calibration set {self.name} is at hand for another preprocessing only.",
            f"Its pictures are gone from {self.source}; kept are images of {', '.join(others)} "
            f"(size, fit, version), and {wanted.stem} is needed.",
            f"Put the pictures back, or choose others for {size} with mde calibrate"
            + (f"; or export at --size {kept}" if kept != size else ""),
        )


def _open_shard(path: Path, shape: tuple[int, ...]) -> IO[bytes] | None:
    """The file after its header; None where it is not there, or not whole and of that shape."""
    try:
        file = path.open("rb")
    except OSError:
        return None
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0(file) if version == (1, 0) else None
        size = int(np.prod(shape)) + file.tell()
        if header == (shape, False, np.dtype(np.uint8)) and os.fstat(file.fileno()).st_size == size:
            return file
    except (ValueError, OSError):
        pass
    file.close()
    return None


def recipe_path(name: str) -> Path:
    """Where a set of that name is kept: the file itself for a `.toml`, else `NAME.toml`, in `calib` where no folder
    is named."""
    path = Path(name)
    if name.endswith(".toml"):
        return path
    return (path.parent if path.parent != Path() else Path(KIND)) / f"{path.name}.toml"


def load_calibration(name_or_path: str) -> CalibrationSet:
    """The set of that recipe: a `.toml` file, else `calib/NAME.toml` here, else one of the package's.

    Raises:
        OptionError: there is no such file and no recipe of that name.
        InputError: the file is no TOML or does not fit.
    """
    here, packaged = recipe_path(name_or_path), recipe_folder(KIND) / f"{name_or_path}.toml"
    path = next((each for each in (here, packaged) if each.is_file()), None)
    if path is None:
        names = sorted({recipe.stem for folder in (Path(KIND), packaged.parent) for recipe in folder.glob("*.toml")})
        raise OptionError(
            f"There is no calibration set {name_or_path!r}.",
            f"There is no {here}" + (f"; the names are {', '.join(names)}." if names else "."),
            f"mde calibrate --from FOLDER -o {name_or_path or 'NAME'}",
        )
    recipe = load_recipe(KIND, str(path), Recipe)
    return CalibrationSet(path=path, sha256=sha256_of(path), recipe=recipe)
