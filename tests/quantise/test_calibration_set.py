"""Recipes of calibration sets, the images that they name, and the cache."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge import __version__
from mirrordepth_edge.config import CLIP_MEAN, CLIP_STD, PreprocessConfig
from mirrordepth_edge.errors import InputError, MdeError, OptionError
from mirrordepth_edge.imaging.draw import video_writer
from mirrordepth_edge.imaging.images import read_image
from mirrordepth_edge.imaging.preprocess import Preprocessor
from mirrordepth_edge.quantise import calibration_set as calibset
from mirrordepth_edge.quantise.calibration_set import (
    CalibrationSet,
    ChosenFrame,
    Dropped,
    Recipe,
    Selection,
    Statistics,
    load_calibration,
    recipe_path,
)
from mirrordepth_edge.quantise.write_calibration_set import folder_as_set, save_calibration
from mirrordepth_edge.sources.files import video_frames, video_length

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SMALL = PreprocessConfig(size_hw=(24, 32), mean=CLIP_MEAN, std=CLIP_STD)
LARGE = replace(SMALL, size_hw=(48, 40))
SIZES = (48, 64), (60, 40), (24, 32), (50, 50), (31, 77)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "mirrordepth-edge" / "calibration"


@pytest.fixture
def office(tmp_path: Path) -> CalibrationSet:
    """Five images of several sizes, one in a subfolder, with a recipe in another folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for index, size_hw in enumerate(SIZES):
        folder = tmp_path / "pictures" / ("deep" if index == 0 else "")
        cv2.imwrite(str(folder / f'{index} "ü".png'), rng.integers(0, 256, (*size_hw, 3), np.uint8))
    named = folder_as_set(tmp_path / "pictures")
    recipe = replace(
        named.recipe,
        name="office",
        source="../pictures",
        selection=Selection(method="farthest-point", model="nano", model_sha256="0" * 64, found=9, candidates=7),
        dropped=Dropped(noise=2),
        statistics=Statistics(neighbour_correlation=0.25, least_neighbour_correlation=1.0),
    )
    return save_calibration(tmp_path / "calib" / "office.toml", recipe)


def test_content_of_a_recipe(office: CalibrationSet) -> None:
    content = office.path.read_bytes()
    assert office.sha256 == hashlib.sha256(content).hexdigest()
    data = tomllib.loads(content.decode())
    assert data["schema_version"] == 1
    assert (data["name"], data["source"], data["count"], data["seed"]) == ("office", "../pictures", 5, 0)
    assert data["selection"]["candidates"] == 7
    assert data["dropped"] == {"unreadable": 0, "uniform": 0, "noise": 2, "blurred": 0, "duplicate": 0}
    assert data["statistics"]["neighbour_correlation"] == 0.25
    folder = office.path.parent / data["source"]
    for frame in data["frames"]:
        assert frame["sha256"] == hashlib.sha256((folder / frame["file"]).read_bytes()).hexdigest()
    assert [frame["file"] for frame in data["frames"]] == [
        *(f'{index} "ü".png' for index in (1, 2, 3, 4)),
        'deep/0 "ü".png',
    ]


def test_a_written_recipe_is_loaded(office: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_calibration(str(office.path)).recipe == office.recipe
    loaded = load_calibration("office")
    assert (loaded.name, loaded.count, loaded.sha256) == ("office", 5, office.sha256)
    assert loaded.path == Path("calib/office.toml")
    shutil.copytree(tmp_path / "calib", tmp_path / "sets")
    assert load_calibration("sets/office").path == Path("sets/office.toml")
    assert recipe_path("sets/a.b") == Path("sets/a.b.toml")
    assert recipe_path("a.toml") == Path("a.toml")


def test_recipes_of_the_package_are_found_last(
    office: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibset, "recipe_folder", lambda kind: tmp_path / "calib")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_calibration("office").sha256 == office.sha256
    with pytest.raises(OptionError) as raised:
        load_calibration("kitchen")
    assert "office" in raised.value.why
    assert raised.value.cure == "mde calibrate --from FOLDER -o kitchen"


FRAME = '{ file = "a.png", sha256 = "' + 64 * "0" + '" }'


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("seed = 0", "seed = 0\ncolour = 1", "colour"),
        ("seed = 0", 'seed = "0"', "seed"),
        ("schema_version = 1", "schema_version = 2", "schema_version"),
        ("count = 5", "count = 6", "count is 6, but the number of frames is 5"),
        ("noise = 2", "noise = 2, fog = 1", "fog"),
        ("frames = [", "frames = [ { number = 3 },", "count is 5, but the number of frames is 6"),
        ("count = 5", 'count = 5\nsource_sha256 = "0"', "image files need none"),
        ("count = 5", "count = 5 =", "line"),
    ],
)
def test_an_invalid_recipe_is_rejected(office: CalibrationSet, old: str, new: str, why: str) -> None:
    text = office.path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    office.path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError) as raised:
        load_calibration(str(office.path))
    assert why in raised.value.why


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (ChosenFrame(number=1), ChosenFrame(number=1)),
        (ChosenFrame(number=2), ChosenFrame(number=1)),
        (ChosenFrame(file="a", sha256=64 * "0"), ChosenFrame(number=1)),
    ],
)
def test_frames_must_be_unique_and_sorted(office: CalibrationSet, frames: tuple[ChosenFrame, ...]) -> None:
    with pytest.raises(ValueError, match=r"number of frames is 0|frames must be all files or all numbers"):
        replace(office.recipe, count=len(frames), frames=frames, source_sha256=64 * "0")


def test_a_frame_must_be_a_file_or_a_number() -> None:
    wrong = {}, {"file": "a"}, {"file": "a", "sha256": "abc"}, {"number": -1}, {"number": 1, "sha256": 64 * "0"}
    for given in (*wrong, {"number": 1, "file": "a", "sha256": 64 * "0"}):
        with pytest.raises(ValueError, match="either a file and its sha256, or a number"):
            ChosenFrame(**given)  # type: ignore[arg-type]


def test_images_are_preprocessed(office: CalibrationSet, cache: Path) -> None:
    pictures = [read_image(office.source / str(frame.file)) for frame in office.recipe.frames]
    for frame, picture in zip(office.frames(), pictures, strict=True):
        np.testing.assert_array_equal(frame, picture)
    for io in ("uint8", "float"):
        prepare = Preprocessor(SMALL, io)
        wanted = np.concatenate([prepare(picture).copy() for picture in pictures])
        for _ in range(2):  # the second time from the cache
            images = list(office.images(SMALL, io))
            assert {image.shape[0] for image in images} == {1}
            np.testing.assert_array_equal(np.concatenate(images), wanted, strict=True)
    kept = list(cache.rglob("*.npy"))
    assert kept == [office.shard(SMALL)]
    np.testing.assert_array_equal(np.load(kept[0])[:, :3], np.stack([Preprocessor(SMALL)(p)[0, :3] for p in pictures]))


def test_the_cache_replaces_deleted_images(office: CalibrationSet, tmp_path: Path) -> None:
    first = list(office.images(SMALL))
    shutil.rmtree(tmp_path / "pictures")
    np.testing.assert_array_equal(list(office.images(SMALL)), first)
    # The cache does not depend on mean and std.
    np.testing.assert_array_equal(list(office.images(replace(SMALL, mean=(0.0, 0.0, 0.0)))), first)
    with pytest.raises(InputError, match="only for another preprocessing") as raised:
        office.images(LARGE)  # raised by the call, not by the first iteration
    assert "24x32" in raised.value.why
    assert "48x40" in raised.value.why
    assert "--size 24x32" in raised.value.cure
    with pytest.raises(InputError, match="cannot be used") as raised:
        next(office.frames())
    assert "mde calibrate" in raised.value.cure


def test_the_cache_of_another_version_is_not_used(
    office: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = office.shard(SMALL)
    assert __version__ in old.name
    monkeypatch.setattr(calibset, "__version__", "99.0")
    assert office.shard(SMALL) != old
    monkeypatch.setattr(calibset, "__version__", "100.0")
    shutil.rmtree(tmp_path / "pictures")
    with pytest.raises(InputError, match="only for another preprocessing") as raised:
        office.images(SMALL)
    assert "--size" not in raised.value.cure


def test_missing_and_changed_images_are_reported(office: CalibrationSet, cache: Path) -> None:
    path = office.source / str(office.recipe.frames[2].file)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match=r"3 .*office cannot be used") as raised:
        office.images(SMALL)
    assert "does not exist" in raised.value.why
    path.write_bytes(content[:-1] + b"\0")
    with pytest.raises(InputError, match=r"3 .*office cannot be used") as raised:
        list(office.frames())
    assert "changed" in raised.value.why
    assert not list(cache.rglob("*.npy*"))  # also no incomplete file
    path.write_bytes(content)
    assert len(list(office.images(SMALL))) == 5


def test_a_damaged_cache_is_rebuilt(office: CalibrationSet) -> None:
    shard = office.shard(SMALL)
    whole = shard.read_bytes()
    for content in (b"", whole[:100], whole[:-1], whole + b"\0", b"x" * len(whole)):
        shard.write_bytes(content)
        assert office.shard(SMALL).read_bytes() == whole
    np.save(shard, np.zeros((5, 24, 32, 3), np.float32))
    assert office.shard(SMALL).read_bytes() == whole
    done: list[int] = []
    office.shard(SMALL, done.append)
    assert not done
    office.shard(LARGE, done.append)
    assert done == [1, 2, 3, 4, 5]


def test_a_cache_that_is_not_writable_is_reported(office: CalibrationSet, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where a folder should be")
    with pytest.raises(MdeError, match="Cannot write"):
        office.images(SMALL)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_is_reported(office: CalibrationSet, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: object, **options: object) -> object:
        return opened(Path("/dev/full") if mode == "wb" else self, mode, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="Cannot write") as raised:
        office.images(SMALL)
    assert "No space" in raised.value.why
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_memory_stays_flat(office: CalibrationSet) -> None:
    """The set has 100 images; only a few may be in memory at once."""
    same = replace(office.recipe.frames[0], file="{:03d}.png")
    source = office.source / str(office.recipe.frames[0].file)
    frames = tuple(replace(same, file=f"{number:03d}.png") for number in range(100))
    for frame in frames:
        shutil.copy(source, office.source / str(frame.file))
    many = replace(office, recipe=replace(office.recipe, count=100, frames=frames), sha256="1" * 64)
    preprocess = replace(SMALL, size_hw=(120, 160))
    image_bytes = 120 * 160 * 3
    list(office.images(preprocess))  # imports and one-time setup
    tracemalloc.start()
    try:
        for io in ("uint8", "float"):
            assert sum(1 for _ in many.images(preprocess, io)) == 100
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25 * image_bytes  # an image as float32 takes 4; far below 100


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames, each with a brightness of 20 times its number."""
    path = tmp_path / "clip.mp4"
    with video_writer(path, 10.0) as append:
        for number in range(12):
            append(np.full((48, 64, 3), 20 * number, np.uint8))
    return path


def test_frames_of_a_video_are_read_by_number(video: Path, tmp_path: Path) -> None:
    assert video_length(video) == 12
    assert [number for number, _ in video_frames(video, {11, 0, 99})] == [0, 11]
    recipe = Recipe(
        name="clip",
        source="../clip.mp4",
        source_sha256=hashlib.sha256(video.read_bytes()).hexdigest(),
        count=3,
        seed=0,
        selection=Selection(method="all", found=12, candidates=12),
        dropped=Dropped(),
        frames=tuple(ChosenFrame(number=number) for number in (1, 5, 10)),
    )
    clip = load_calibration(str(save_calibration(tmp_path / "sets" / "clip.toml", recipe).path))
    assert [frame.mean() for frame in clip.frames()] == pytest.approx([20, 100, 200], abs=6)
    assert [image.mean() for image in clip.images(SMALL)] == pytest.approx([20, 100, 200], abs=6)
    short = replace(clip, recipe=replace(recipe, count=2, frames=(ChosenFrame(number=1), ChosenFrame(number=12))))
    with pytest.raises(InputError, match="cannot be used") as raised:
        list(short.frames())
    assert "Only 1 of its 2" in raised.value.why
    video.write_bytes(video.read_bytes() + b"\0")
    with pytest.raises(InputError, match="cannot be used") as raised:
        list(clip.frames())
    assert "changed" in raised.value.why


def test_a_video_that_cannot_be_decoded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(InputError, match="cannot be read as a video"):
        video_length(tmp_path / "clip.mp4")
