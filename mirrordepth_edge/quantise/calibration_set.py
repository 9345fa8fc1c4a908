"""Calibration sets: the images from which INT8 ranges are measured.

A set is described by a recipe, a TOML file with the names and hashes of the frames, which `mde calibrate` writes
(`select_frames` selects them). The preprocessed images are cached per input size as one uint8 file, so a set is decoded
only once, and remains usable on that machine if its images are deleted.
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
from mirrordepth_edge.imaging.images import read_image
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
    """How the frames were selected."""

    method: Literal["farthest-point", "all"]
    model: str | None = None
    """Model whose features were used to compare frames."""
    model_sha256: str | None = None
    found: int
    """Number of frames in the source; for a video, according to its header."""
    candidates: int
    """Number of evenly spaced frames that were examined."""


@dataclass(frozen=True, kw_only=True)
class Dropped(Strict):
    """Number of rejected candidates by reason. Other candidates were not needed."""

    unreadable: int = 0
    uniform: int = 0
    """Black, or nearly uniform brightness."""
    noise: int = 0
    """Neighbouring pixels hardly correlate, unlike in camera images."""
    blurred: int = 0
    duplicate: int = 0
    """Nearly the same as a frame that was kept."""

    def __str__(self) -> str:
        """Format the counts, such as `2 noise, 1 blurred`; empty if there are none."""
        counts = ((getattr(self, field.name), field.name) for field in fields(self))
        return ", ".join(f"{count} {reason}" for count, reason in counts if count)


@dataclass(frozen=True, kw_only=True)
class Statistics(Strict):
    """Statistics of the selected frames."""

    neighbour_correlation: float
    """Correlation of the brightness of neighbouring pixels: 1 for smooth images, 0 for noise. Median of the frames."""
    least_neighbour_correlation: float
    """Minimum of the frames."""


@dataclass(frozen=True, kw_only=True)
class ChosenFrame(Strict):
    """One frame: an image file, or a video frame by its number."""

    file: str | None = None
    """Path relative to the source, with forward slashes."""
    sha256: str | None = None
    """SHA-256 of the file."""
    number: int | None = None
    """Frame number, counted from 0 over the frames that can be read."""

    def __post_init__(self) -> None:
        is_image = self.file is not None and self.sha256 is not None and HASH.fullmatch(self.sha256) is not None
        is_video = self.number is not None and self.number >= 0
        if is_image is is_video or (is_video and (self.file is not None or self.sha256 is not None)):
            raise ValueError("a frame needs either a file and its sha256, or a number")


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """The content of a recipe file."""

    schema_version: Literal[1] = RECIPE_VERSION
    name: str
    source: str
    """Folder or video, relative to the recipe's folder."""
    source_sha256: str | None = None
    """SHA-256 of a video; None for a folder of images."""
    count: int
    seed: int
    selection: Selection
    dropped: Dropped
    statistics: Statistics | None = None
    frames: tuple[ChosenFrame, ...]
    """Sorted by file or number."""

    def __post_init__(self) -> None:
        if not self.count == len(self.frames) > 0:
            raise ValueError(
                f"count is {self.count}, but the number of frames is {len(self.frames)}; at least 1 is required"
            )
        keys = [frame.file if frame.number is None else frame.number for frame in self.frames]
        if len({type(key) for key in keys}) > 1 or keys != sorted(set(keys)):  # type: ignore[type-var]
            raise ValueError("frames must be all files or all numbers, sorted and without duplicates")
        if isinstance(keys[0], int) is not (self.source_sha256 is not None):
            raise ValueError("frame numbers need the source_sha256 of a video; image files need none")

    def text(self) -> str:
        """Format the recipe as TOML, one frame per line. Equal recipes give equal text."""
        entries = asdict(self)
        frames = entries.pop("frames")
        lines = [f"{key} = {_toml(value)}" for key, value in entries.items() if value is not None]
        return "\n".join([*lines, "frames = [", *(f"  {_toml(frame)}," for frame in frames), "]", ""])


def _toml(value: Any) -> str:
    """Format a string, a number, or a table of these as TOML; entries that are None are left out."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(entry)}" for key, entry in value.items() if entry is not None) + " }"
    # JSON strings are valid TOML, except for the control character DEL, which JSON does not escape.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """A recipe with its path. Images are read on demand."""

    path: Path
    """The recipe file; the source is relative to its folder."""
    sha256: str
    """SHA-256 of the recipe file."""
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def count(self) -> int:
        """Number of frames."""
        return self.recipe.count

    @property
    def source(self) -> Path:
        """The folder of images, or the video."""
        # The folder is resolved first, since `..` after a symbolic link leads to the parent of its target.
        return Path(os.path.normpath(self.path.parent.resolve() / self.recipe.source))

    def frames(self) -> Iterator[Frame]:
        """Yield the original images, uint8 RGB `[H, W, 3]`, in the order of the recipe.

        Raises:
            InputError: an image is missing or was changed.
        """
        return self.some_frames(range(self.count))

    def some_frames(self, positions: Container[int]) -> Iterator[Frame]:
        """Yield the images at these positions of the recipe, like `frames`."""
        wanted = [frame for position, frame in enumerate(self.recipe.frames) if position in positions]
        if self.recipe.source_sha256 is None:
            for frame in wanted:
                assert frame.file is not None
                assert frame.sha256 is not None
                path = self.source / frame.file
                self._check(path, frame.sha256)
                yield read_image(path)
            return
        self._check(self.source, self.recipe.source_sha256)
        numbers = {frame.number for frame in wanted if frame.number is not None}
        read = 0
        for _, image in video_frames(self.source, numbers):
            read += 1
            yield image
        if read != len(wanted):
            raise self._unusable(self.source, f"Only {read} of its {len(wanted)} frames can be read here.")

    def _check(self, path: Path, sha256: str) -> None:
        if not path.is_file():
            raise self._unusable(path, "The file does not exist.")
        if sha256_of(path) != sha256:
            raise self._unusable(path, f"Its SHA-256 is not {sha256[:12]}…: it was changed or replaced.")

    def _unusable(self, path: Path, why: str) -> InputError:
        return InputError(f"{path} of calibration set {self.name} cannot be used.", why, self.cure)

    @property
    def cure(self) -> str:
        """How to repair the set, for error messages."""
        again = f"mde calibrate --from {self.source} --count {self.count} --seed {self.recipe.seed} -o {self.path}"
        return f"Restore the original file, or select again: {again}"

    def images(self, preprocess: PreprocessConfig, io: InputKind = "uint8") -> Iterator[npt.NDArray[Any]]:
        """Yield the network's inputs one by one. Each call starts from the first frame.

        The first call for an input size reads all images and caches the preprocessed ones (see `shard`).

        Args:
            preprocess: preprocessing of the network.
            io: `uint8` for uint8 RGB `[1, H, W, 3]`, `float` for normalised float32 `[1, 3, H, W]`.

        Raises:
            InputError: see `shard`; raised by the call, not by the first iteration.
        """
        return self._stream(self.shard(preprocess), preprocess, io)

    def _stream(self, shard: Path, preprocess: PreprocessConfig, io: InputKind) -> Iterator[npt.NDArray[Any]]:
        height, width = preprocess.size_hw
        file = _open_shard(shard, (self.count, height, width, 3))
        if file is None:
            raise InputError(f"{shard} is missing or damaged.", "Another program changed the cache.", "Retry.")
        with file:
            # Read, not memory-mapped: touched pages of a mapping count as memory of this process.
            for _ in range(self.count):
                image = np.frombuffer(file.read(height * width * 3), np.uint8).reshape(1, height, width, 3)
                yield image if io == "uint8" else normalise(image[0], preprocess)

    def shard(self, preprocess: PreprocessConfig, on_frame: Callable[[int], object] = lambda count: None) -> Path:
        """Return the cache file of the preprocessed images, a `.npy` of uint8 `[count, H, W, 3]`; create it if needed.

        Its path contains everything it depends on: the recipe's hash, the size, how frames are fitted to it, and the
        package version. If it exists, the original images are not needed.

        Args:
            on_frame: called with the number of finished frames while the file is created.

        Raises:
            InputError: an image is missing or was changed; all are missing and only images of another preprocessing
                are cached; or the cache is not writable.
        """
        height, width = preprocess.size_hw
        folder = user_cache("calibration") / self.sha256[:16]
        path = folder / f"{height}x{width}.{preprocess.fit}.{__version__}.npy"
        shape = (self.count, height, width, 3)
        cached = _open_shard(path, shape)
        if cached is not None:
            cached.close()
            return path
        self._check_cached_preprocessing(folder, path)
        prepare = Preprocessor(preprocess)
        with atomic_write(path, durable=False) as temporary, temporary.open("wb") as file:
            # Written, not memory-mapped: a full disk is then an error instead of a crash (SIGBUS).
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for done, frame in enumerate(self.frames(), 1):
                file.write(prepare(frame).tobytes())
                on_frame(done)
        return path

    def _check_cached_preprocessing(self, folder: Path, wanted: Path) -> None:
        """Raise InputError if the images are missing and only another preprocessing of them is cached."""
        images = [self.source / (frame.file or "") for frame in self.recipe.frames]
        others = sorted(shard.stem for shard in folder.glob("*.npy") if shard != wanted)
        if any(image.is_file() for image in images) or not others:
            return
        cached_size, size = others[0].split(".")[0], wanted.stem.split(".")[0]
        raise InputError(
            f"Calibration set {self.name} is cached only for another preprocessing.",
            f"Its images are missing from {self.source}; cached are {', '.join(others)} (size, fit, version), but "
            f"{wanted.stem} is needed.",
            f"Restore the images, or select others for {size} with mde calibrate"
            + (f"; or export with --size {cached_size}" if cached_size != size else ""),
        )


def _open_shard(path: Path, shape: tuple[int, ...]) -> IO[bytes] | None:
    """Open a cache file after its header; None if it is missing, incomplete, or of another shape."""
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
    """Return the path of a recipe: the name itself if it is a `.toml`, else `NAME.toml`, by default in `calib`."""
    path = Path(name)
    if name.endswith(".toml"):
        return path
    return (path.parent if path.parent != Path() else Path(KIND)) / f"{path.name}.toml"


def load_calibration(name_or_path: str) -> CalibrationSet:
    """Load a calibration set: a `.toml` file, `calib/NAME.toml`, or a recipe of the package.

    Raises:
        OptionError: there is no such file or recipe.
        InputError: the file is not a valid recipe.
    """
    local, packaged = recipe_path(name_or_path), recipe_folder(KIND) / f"{name_or_path}.toml"
    path = next((candidate for candidate in (local, packaged) if candidate.is_file()), None)
    if path is None:
        names = sorted({recipe.stem for folder in (Path(KIND), packaged.parent) for recipe in folder.glob("*.toml")})
        raise OptionError(
            f"Calibration set {name_or_path!r} not found.",
            f"{local} does not exist" + (f"; available sets: {', '.join(names)}." if names else "."),
            f"mde calibrate --from FOLDER -o {name_or_path or 'NAME'}",
        )
    recipe = load_recipe(KIND, str(path), Recipe)
    return CalibrationSet(path=path, sha256=sha256_of(path), recipe=recipe)
