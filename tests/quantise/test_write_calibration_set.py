"""Recipes and contact sheets from images and cameras."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.draw import save_png
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.quantise import write_calibration_set as write_calibset
from mirrordepth_edge.quantise.select_frames import Chooser, Key, TowerFeatures, brightness
from mirrordepth_edge.quantise.write_calibration_set import (
    build_set,
    contact_sheet,
    folder_as_set,
    keep_only,
    list_images,
    new_folder,
    read_images,
    refuse_foreign_sheet,
    save_frame,
    sheet_path,
    spread_evenly,
)

from .scenes import scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "deep" / ".hidden").mkdir(parents=True)
    for seed in range(6):
        save_png(tmp_path / "pictures" / ("deep" if seed % 2 else ".") / f"{seed}.png", scene(seed))
    return tmp_path / "pictures"


def test_images_are_found_in_subfolders(folder: Path) -> None:
    for name in ("deep/.hidden/9.png", ".9.png", "deep/set.jpg", "set.jpg", "9.PNG"):
        cv2.imwrite(str(folder / "9.png"), scene(9, (20, 20)))
        (folder / "9.png").replace(folder / name)
    (folder / "set.toml").touch()
    (folder / "notes.txt").touch()
    cv2.imwrite(str(folder / "depth.png"), np.full((20, 20), 1000, np.uint16))
    cv2.imwrite(str(folder / "grey.png"), np.full((20, 20), 100, np.uint8))
    wanted = ["0.png", "2.png", "4.png", "9.PNG", "deep/1.png", "deep/3.png", "deep/5.png", "deep/set.jpg", "grey.png"]
    assert list_images(folder) == wanted
    named = folder_as_set(folder)
    assert [frame.file for frame in named.recipe.frames] == wanted
    np.testing.assert_array_equal(next(named.frames()), scene(0))
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="No images found"):
        folder_as_set(folder / "empty")


def examine(features: TowerFeatures, candidates: Iterable[tuple[Key, Frame | None]]) -> Chooser:
    chooser = Chooser(features)
    for key, frame in candidates:
        chooser.look(key, frame)
    return chooser


def test_the_same_images_give_the_same_recipe(features: TowerFeatures, folder: Path, tmp_path: Path) -> None:
    (folder / "torn.png").write_bytes(b"no picture")
    written = []
    for name in ("one", "two"):
        files = list_images(folder)
        chooser = examine(features, read_images(folder, files if name == "one" else files[::-1]))
        path = tmp_path / name / "same.toml"
        made = build_set(path, folder, chooser.pick(4, 7, "it"), seed=7, found=len(files), features=features)
        assert [frame.shape for frame in made.frames()] == [(180, 240, 3)] * 4
        written.append((path.read_bytes(), sheet_path(path).read_bytes()))
    assert written[0] == written[1]
    assert b'source = "../pictures"' in written[0][0]
    assert b"unreadable = 1" in written[0][0]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["same.jpg", "same.toml"]


def test_nothing_is_written_if_a_frame_cannot_be_read(features: TowerFeatures, folder: Path, tmp_path: Path) -> None:
    chooser = examine(features, read_images(folder, list_images(folder)))
    choice = chooser.pick(6, 0, "it")
    (folder / "0.png").write_bytes(b"changed in between")
    with pytest.raises(InputError, match=r"0\.png cannot be read as an image"):
        build_set(tmp_path / "sets" / "it.toml", folder, choice, seed=0, found=6, features=features)
    assert not (tmp_path / "sets").exists() or not list((tmp_path / "sets").iterdir())


def test_the_title_of_a_contact_sheet_counts_its_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(write_calibset, "titled", lambda image, title: titles.append(title) or image)
    monkeypatch.setattr(write_calibset, "SHEET_COLUMNS", 2)
    whole = folder_as_set(folder, "bür")
    full = contact_sheet(whole)
    assert full.shape == (3 * 96 + 2 * 4, 2 * 128 + 4, 3)
    monkeypatch.setattr(write_calibset, "MAX_SHEET_IMAGES", 3)
    part = contact_sheet(whole)
    assert titles == ["b?r: 6 of 6 frames", "b?r: 3 of 6 frames"]
    # 180x240 fits 96x128 exactly; the third shown is the fifth of six.
    np.testing.assert_array_equal(part[100:196, :128], full[200:296, :128])
    assert np.abs(full[:96, :128].mean(axis=(0, 1)) - scene(0).mean(axis=(0, 1))).max() < 2


def test_items_are_spread_evenly() -> None:
    assert spread_evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread_evenly("abc", 9) == ["a", "b", "c"]
    assert spread_evenly([], 5) == []
    steps = np.diff(spread_evenly(range(1000), 300))
    assert set(steps) == {3, 4}


def test_the_folder_of_a_camera_is_new_and_deleted_after_a_failure(features: TowerFeatures, tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "camera"
    chooser = Chooser(features)
    with new_folder(folder):
        for seed in (0, 0, 1):
            chooser.look(save_frame(folder, chooser.seen, scene(seed)), scene(seed))
        choice = chooser.pick(5, 0, "camera")
        keep_only(folder, choice)
    assert sorted(path.name for path in folder.iterdir()) == list(choice.picked) == ["000000.jpg", "000002.jpg"]
    kept = next(read_images(folder, ["000002.jpg"]))[1]
    assert kept is not None
    assert np.abs(brightness(kept) - brightness(scene(1))).mean() < 3
    with pytest.raises(InputError, match="already exists"), new_folder(folder):
        pass
    assert len(list(folder.iterdir())) == 2
    for error in (KeyboardInterrupt(), InputError("a", "b", "c")):
        with pytest.raises(type(error)), new_folder(tmp_path / "other") as other:  # noqa: PT012 - it has to break off
            save_frame(other, 0, scene(0))
            raise error
        assert not (tmp_path / "other").exists()


def test_a_contact_sheet_does_not_overwrite_an_image_of_the_user(folder: Path) -> None:
    recipe = folder / "garden.toml"
    refuse_foreign_sheet(recipe)
    sheet_path(recipe).write_bytes(b"a garden")
    with pytest.raises(OptionError, match=r"garden\.jpg would be overwritten"):
        refuse_foreign_sheet(recipe)
    recipe.touch()
    refuse_foreign_sheet(recipe)
