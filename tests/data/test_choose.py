"""Choice of the data set from the options, for every known layout."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.config import DataConfig
from mirrordepth_edge.data.choose import Part, choose_dataset, kind_of, training_focal
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.errors import InputError, OptionError

NYU_LINE = "/{0}/rgb_{1:05d}.jpg /{0}/sync_depth_{1:05d}.png 518.8579\n"
DATE, DRIVE = "2011_09_26", "2011_09_26_drive_0002_sync"
KITTI_PICTURE = f"{DATE}/{DRIVE}/image_02/data"
KITTI_DEPTH = f"{DRIVE}/proj_depth/groundtruth/image_02"


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def write_pair(picture: Path, depth: Path, value: int, size_hw: tuple[int, int] = (4, 6)) -> None:
    """A grey picture and, in all of it, the depth `value` in units of the PNG."""
    write(picture, np.full((*size_hw, 3), 128, np.uint8))
    write(depth, np.full(size_hw, value, np.uint16))


def write_nyu_pair(folder: Path, scene: str, number: int, value: int, size_hw: tuple[int, int] = (4, 6)) -> str:
    names = NYU_LINE.format(scene, number).split()
    write_pair(folder / names[0][1:], folder / names[1][1:], value, size_hw)
    return NYU_LINE.format(scene, number)


def write_folder(root: Path, value: int = 1000) -> Path:
    write_pair(root / "rgb" / "1.png", root / "depth" / "1.png", value)
    return root


def write_labelled(root: Path) -> Path:
    """One training picture (depth 3 m) and one of the test part (4 m)."""
    h5py = pytest.importorskip("h5py", reason="NYU's .mat file is HDF5")
    scipy_io = pytest.importorskip("scipy.io", reason="splits.mat is MATLAB 5")
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = np.zeros((2, 3, 640, 480), np.uint8)
        file["rawDepths"] = np.stack([np.full((640, 480), value, np.float32) for value in (3, 4)])
    scipy_io.savemat(root / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[2]])})
    return root / "nyu_depth_v2_labeled.mat"


def write_h5(root: Path) -> Path:
    """Depth 5 m for training, 6 m in the test part."""
    h5py = pytest.importorskip("h5py", reason="fast-depth's files are HDF5")
    for name, value in (("train/kitchen_0028b/00001.h5", 5), ("val/official/00001.h5", 6)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(root / name, "w") as file:
            file["rgb"] = np.zeros((3, 480, 640), np.uint8)
            file["depth"] = np.full((480, 640), value, np.float32)
    return root


def write_shards(root: Path) -> Path:
    source = write_h5(root.parent / "unpacked")
    (root / "data").mkdir(parents=True)
    for part in ("train", "val"):
        with tarfile.open(root / "data" / f"{part}-000000.tar", "w") as tar:
            tar.add(source / part, part)
    return root


def write_bts_nyu(root: Path, lists: Path) -> Path:
    """Depth 1 m for training, 2 m in the test part."""
    lists.mkdir(parents=True, exist_ok=True)
    line = write_nyu_pair(root / "sync", "kitchen_0028b", 45, 1000, (480, 640))
    (lists / "nyudepthv2_train_files_with_gt.txt").write_text(line)
    line = write_nyu_pair(root / "official_splits" / "test", "bathroom", 45, 2000, (480, 640))
    (lists / "nyudepthv2_test_files_with_gt.txt").write_text(line)
    return root


def write_kitti(root: Path, lists: Path, *, pictures: str = "", depth: str = "", prefix: str = "") -> Path:
    """Two training pictures (depth 1 and 2 m), whose depth KITTI has in different folders, and one to test (3 m)."""
    lists.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (within, drive) in enumerate((("train", "0001"), ("val", "0002"), ("val", "0009")), 1):
        picture = f"{KITTI_PICTURE}/{number:010d}.png".replace("drive_0002", f"drive_{drive}")
        truth = f"{KITTI_DEPTH}/{number:010d}.png".replace("drive_0002", f"drive_{drive}")
        write_pair(root / pictures / picture, root / depth / within / truth, 256 * number, (375, 1242))
        lines.append(f"{picture} {truth} 721.5377\n")
    none = f"{KITTI_PICTURE}/0000000000.png None 721.5377\n"
    (lists / f"{prefix}eigen_train_files_with_gt.txt").write_text(lines[0] + lines[1])
    (lists / f"{prefix}eigen_test_files_with_gt.txt").write_text(none + lines[2])
    return root


def metres(data: DepthDataset) -> list[float]:
    """The largest depth of each picture, to a millimetre."""
    return [round(float(sample.depth_m.max()), 3) for sample in data]


def chosen(root: Path, part: Part = "test", **options: object) -> DepthDataset:
    return choose_dataset(DataConfig(root=root, **options), part)  # type: ignore[arg-type]


def refused(root: Path, part: Part = "test", **options: object) -> InputError | OptionError:
    with pytest.raises((InputError, OptionError)) as caught:
        list(chosen(root, part, **options))
    return caught.value


# --- NYU Depth v2 --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nyu", "auto"])
@pytest.mark.parametrize("beside", [False, True])
def test_nyu_as_bts_has_it(kind: str, beside: bool, tmp_path: Path) -> None:
    root = write_bts_nyu(tmp_path / "nyu", tmp_path if beside else tmp_path / "nyu")
    assert metres(chosen(root, "train", kind=kind)) == [1]
    assert metres(chosen(root, "test", kind=kind)) == [2]
    assert kind_of(DataConfig(root=root)) == "nyu"


@pytest.mark.parametrize("part", ["train", "test"])
def test_nyu_where_root_is_the_folder_of_scenes_itself(part: Part, tmp_path: Path) -> None:
    line = write_nyu_pair(tmp_path, "kitchen_0028b", 45, 1500)
    (tmp_path / f"nyudepthv2_{part}_files_with_gt.txt").write_text(line)
    assert metres(chosen(tmp_path, part, kind="nyu")) == [1.5]


@pytest.mark.parametrize("kind", ["nyu", "auto"])
def test_labelled_file_by_folder_or_by_name(kind: str, tmp_path: Path) -> None:
    file = write_labelled(tmp_path)
    for root in (tmp_path, file):
        assert metres(chosen(root, "train", kind=kind)) == [3]
        assert metres(chosen(root, "test", kind=kind)) == [4]
        assert kind_of(DataConfig(root=root)) == "nyu"


@pytest.mark.parametrize("kind", ["nyu", "auto"])
@pytest.mark.parametrize("written", [write_h5, write_shards])
def test_nyu_as_fast_depth_has_it(kind: str, written: object, tmp_path: Path) -> None:
    root = written(tmp_path / "nyu")  # type: ignore[operator]
    assert metres(chosen(root, "train", kind=kind)) == [5]
    assert metres(chosen(root, "test", kind=kind)) == [6]
    assert kind_of(DataConfig(root=root)) == "nyu"


def test_precedence_of_nyu_forms_is_as_documented(tmp_path: Path) -> None:
    root = write_h5(tmp_path / "nyu")
    write_labelled(root)
    assert metres(chosen(root, kind="nyu")) == [4], "the .mat before HDF5 files"
    write_bts_nyu(root, root)
    assert metres(chosen(root, kind="nyu")) == [2], "a list before the .mat"
    (root / "official_splits").rename(root / "elsewhere")
    assert metres(chosen(root, kind="nyu")) == [4], "a list whose pictures are not there is none"
    (root / "mine.txt").write_text(write_nyu_pair(root, "x", 9, 9000))
    assert metres(chosen(root, kind="nyu", list_file=root / "mine.txt")) == [9], "a list that is named before all"


FORMS = {"bts": lambda root: write_bts_nyu(root, root), "mat": write_labelled, "h5": write_h5, "shards": write_shards}


@pytest.mark.parametrize("form", FORMS)
def test_nyu_training_part_has_no_depth_at_the_border(form: str, tmp_path: Path) -> None:
    root = tmp_path / "nyu"
    FORMS[form](root)
    (train,) = chosen(root, "train", kind="nyu")
    (test,) = chosen(root, "test", kind="nyu")
    assert train.frame.shape == (480, 640, 3), "the view is whole"
    assert (train.depth_m[45:472, 43:608] > 0).all()
    assert np.count_nonzero(train.depth_m) == (472 - 45) * (608 - 43)
    assert (test.depth_m > 0).all()


@pytest.mark.parametrize("part", ["train", "test"])
def test_data_sets_can_be_pickled(part: Part, tmp_path: Path) -> None:
    write_kitti(tmp_path / "kitti", tmp_path / "kitti")
    FORMS["bts"](tmp_path / "nyu")
    for root in (tmp_path / "kitti", tmp_path / "nyu"):
        data = chosen(root, part)
        assert metres(pickle.loads(pickle.dumps(data))) == metres(data)


def test_parts_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    for form, make in FORMS.items():
        root = tmp_path / form / "nyu"
        make(root)
        assert chosen(root, "train", kind="nyu").fingerprint() != chosen(root, "test", kind="nyu").fingerprint()


# --- KITTI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kitti", "auto"])
@pytest.mark.parametrize(
    ("pictures", "depth", "prefix", "beside"),
    [
        ("", "data_depth_annotated", "", False),
        ("raw", "gts", "kitti_", True),
        ("input", "gt_depth", "kitti_", False),
        ("raw", "", "", True),
    ],
)
def test_kitti_in_its_layouts(kind: str, pictures: str, depth: str, prefix: str, beside: bool, tmp_path: Path) -> None:
    root = tmp_path / "kitti"
    write_kitti(root, tmp_path if beside else root, pictures=pictures, depth=depth, prefix=prefix)
    train, test = (list(chosen(root, part, kind=kind)) for part in ("train", "test"))  # type: ignore[arg-type]
    assert [float(sample.depth_m.max()) for sample in train] == [1, 2], "from train and val, 256 a metre"
    assert [float(sample.depth_m.max()) for sample in test] == [3], "without the line that has no depth"
    assert test[0].frame.shape == (352, 1216, 3)
    assert kind_of(DataConfig(root=root)) == "kitti"


def test_depth_of_kitti_with_train_and_val_in_one_folder(tmp_path: Path) -> None:
    """BTS's layout: the folders below KITTI's train and val, moved up."""
    write_kitti(tmp_path, tmp_path, depth="gts")
    for within in ("train", "val"):
        for drive in (tmp_path / "gts" / within).iterdir():
            drive.rename(tmp_path / "gts" / drive.name)
    assert metres(chosen(tmp_path, "train")) == [1, 2]


def test_depth_root_takes_precedence(tmp_path: Path) -> None:
    root = write_kitti(tmp_path / "kitti", tmp_path / "kitti", depth="gts")
    write_kitti(tmp_path / "other", tmp_path / "other", depth="truth")
    for path in (tmp_path / "other" / "truth").rglob("*.png"):
        write(path, np.full((375, 1242), 256 * 7, np.uint16))
    assert metres(chosen(root, "train", depth_root=tmp_path / "other" / "truth")) == [7, 7]
    error = refused(root, "train", depth_root=tmp_path / "nowhere")
    assert f"no folder {tmp_path / 'nowhere'}" in error.what


def test_named_list_takes_precedence(tmp_path: Path) -> None:
    root = write_kitti(tmp_path / "kitti", tmp_path / "kitti")
    lists = tmp_path / "lists"
    lists.mkdir()
    text = (root / "eigen_train_files_with_gt.txt").read_text().splitlines()[1]
    for name in ("kitti_eigen_test_files_with_gt.txt", "mine.txt"):
        (lists / name).write_text(text)
    known, own = lists / "kitti_eigen_test_files_with_gt.txt", lists / "mine.txt"
    assert metres(chosen(root, list_file=known)) == [2]
    assert kind_of(DataConfig(root=root, list_file=known)) == "kitti"
    assert kind_of(DataConfig(root=root, list_file=own)) == "folder"
    assert metres(chosen(root, list_file=own, kind="kitti")) == [2]
    assert metres(chosen(root, list_file=own, depth_root=root / "val")) == [512 / 1000], "a list of one's own, in mm"


# --- options -------------------------------------------------------------------------------------


def test_kb_crop_is_the_default_for_kitti_only(tmp_path: Path) -> None:
    root = write_kitti(tmp_path / "kitti", tmp_path / "kitti")
    assert chosen(root)[0].depth_m.shape == (352, 1216)
    assert chosen(root, kb_crop=False)[0].depth_m.shape == (375, 1242)
    folder = tmp_path / "folder"
    write_pair(folder / "rgb" / "1.png", folder / "depth" / "1.png", 1000, (370, 1226))
    assert chosen(folder)[0].depth_m.shape == (370, 1226)
    assert chosen(folder, kb_crop=True)[0].depth_m.shape == (352, 1216)
    assert chosen(folder, kb_crop=True).fingerprint() != chosen(folder).fingerprint()
    assert chosen(folder, kind="kitti")[0].depth_m.shape == (352, 1216)
    nyu = FORMS["bts"](tmp_path / "nyu")
    assert "too small for the KB crop" in refused(nyu, kb_crop=True).what


def test_the_camera_is_the_data_sets(tmp_path: Path) -> None:
    """Kinect: the toolbox's constants; KITTI: P_rect_02, and of a crop, which keeps focal lengths in pixels."""
    nyu = DataConfig(root=FORMS["bts"](tmp_path / "nyu"))
    assert training_focal(nyu) == pytest.approx((518.857901 / 640, 519.469611 / 480))
    kitti = write_kitti(tmp_path / "kitti", tmp_path / "kitti")
    assert training_focal(DataConfig(root=kitti)) == pytest.approx((721.5377 / 1216, 721.5377 / 352))
    whole = training_focal(DataConfig(root=kitti, kb_crop=False))
    assert whole == pytest.approx((721.5377 / 1242, 721.5377 / 375))


def test_camera_of_a_folder_is_read_from_its_file(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    assert training_focal(DataConfig(root=root)) is None
    (root / "camera.json").write_text(json.dumps({"width": 1280, "height": 720, "fx": 640, "fy": 648.0}))
    assert training_focal(DataConfig(root=root)) == pytest.approx((0.5, 0.9))
    cropped = training_focal(DataConfig(root=root, kb_crop=True))
    assert cropped == pytest.approx((640 / 1216, 648 / 352))
    assert training_focal(DataConfig(root=root, kind="nyu")) == pytest.approx((0.8107, 1.0822), abs=1e-4)
    (root / "camera.json").write_text(json.dumps({"name": "ceiling"}))
    with pytest.raises(InputError, match=r"camera\.json holds no camera"):
        training_focal(DataConfig(root=root))


def test_units_are_the_kinds_own_unless_given(tmp_path: Path) -> None:
    root = write_folder(tmp_path, 512)
    assert metres(chosen(root, kb_crop=False)) == [0.512]
    assert metres(chosen(root, kind="nyu")) == [0.512]
    assert metres(chosen(root, kind="kitti", kb_crop=False)) == [2]
    assert metres(chosen(root, kind="kitti", kb_crop=False, units_per_metre=512)) == [1]


@pytest.mark.parametrize("form", ["mat", "h5", "shards"])
@pytest.mark.parametrize(
    ("option", "value"), [("units_per_metre", 1000.0), ("depth_root", Path())], ids=["units", "depth-root"]
)
def test_options_that_do_not_apply_to_hdf5(form: str, option: str, value: object, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "nyu")
    error = refused(tmp_path / "nyu", kind="nyu", **{option: value})
    assert isinstance(error, OptionError)
    assert f"--{option.replace('_', '-')} does not apply to" in error.what


def test_a_list_with_the_labelled_file(tmp_path: Path) -> None:
    file = write_labelled(tmp_path)
    error = refused(file, kind="nyu", list_file=tmp_path / "list.txt")
    assert isinstance(error, OptionError)
    assert "--list" in error.what


# --- what is not there ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", "folder", "nyu", "kitti"])
def test_a_root_that_does_not_exist(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    assert refused(root, kind=kind).what == f"There is no folder {root}."
    assert refused(root, kind=kind, list_file=tmp_path / "list.txt").what == f"There is no folder {root}."


@pytest.mark.parametrize("kind", ["auto", "nyu"])
def test_a_labelled_file_that_does_not_exist(kind: str, tmp_path: Path) -> None:
    assert "There is no NYU Depth v2 file" in refused(tmp_path / "x.mat", kind=kind).what


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nyu", ["nyudepthv2_test_files_with_gt.txt", "official_splits/test", "nyu_depth_v2_labeled.mat", "val/SCENE"]),
        ("kitti", ["eigen_test_files_with_gt.txt", "kitti_eigen_test_files_with_gt.txt", "raw", "gts", "--depth-root"]),
        ("folder", ["rgb", "depth"]),
        ("auto", ["rgb/NAME", "depth/NAME"]),
    ],
)
def test_empty_root_lists_what_was_expected(kind: str, words: list[str], tmp_path: Path) -> None:
    error = refused(tmp_path, kind=kind)
    assert isinstance(error, InputError)
    assert str(tmp_path) in error.what
    assert not [word for word in words if word not in error.why]
    assert "--root" in error.cure
    assert ("--data nyu or --data kitti" in error.cure) == (kind == "auto")


def test_expected_files_depend_on_the_part(tmp_path: Path) -> None:
    error = refused(tmp_path, "train", kind="nyu")
    assert "nyudepthv2_train_files_with_gt.txt" in error.why
    assert "train/SCENE" in error.why
    assert "test" not in error.why


def test_an_archive_that_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "nyudepthv2.tar.gz").write_bytes(b"x")
    assert refused(tmp_path, kind="nyu").cure == "Unpack nyudepthv2.tar.gz first."


def test_the_wrong_kind(tmp_path: Path) -> None:
    nyu, kitti = FORMS["bts"](tmp_path / "a" / "nyu"), write_kitti(tmp_path / "b", tmp_path / "b")
    assert "--data nyu" in refused(nyu, kind="kitti").cure
    assert "--data kitti" in refused(kitti, kind="nyu").cure
    file = write_labelled(tmp_path / "c")
    error = refused(file, kind="kitti")
    assert isinstance(error, OptionError)
    assert error.cure == "--data nyu"
    assert "has no folder of images" in refused(nyu, kind="folder").what


def test_a_folder_with_one_half_of_a_pair(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "depth").rename(tmp_path / "disparity")
    assert "has no folder of depth" in refused(tmp_path).what


def test_a_root_that_could_be_several_kinds(tmp_path: Path) -> None:
    write_folder(write_bts_nyu(tmp_path, tmp_path))
    error = refused(tmp_path)
    assert isinstance(error, OptionError)
    assert "folder or nyu" in error.what
    assert error.cure == "--data folder or --data nyu"
    assert metres(chosen(tmp_path, kind="folder")) == [1]
    assert metres(chosen(tmp_path, kind="nyu")) == [2]


def test_lists_beside_another_root_are_ignored(tmp_path: Path) -> None:
    write_bts_nyu(tmp_path / "nyu", tmp_path)
    write_kitti(tmp_path / "kitti", tmp_path)
    mine = write_folder(tmp_path / "mine")
    assert metres(chosen(mine)) == [1]
    assert metres(chosen(tmp_path / "nyu")) == [2]
    assert metres(chosen(tmp_path / "kitti")) == [3]


def test_list_with_missing_images(tmp_path: Path) -> None:
    write_bts_nyu(tmp_path, tmp_path)
    (tmp_path / "sync").rename(tmp_path / "moved")
    error = refused(tmp_path, "train", kind="nyu")
    assert "kitchen_0028b/rgb_00045.jpg" in error.what
    assert "1 of 1 images" in error.what
    assert "--root" in error.cure


def test_broken_list_is_reported_only_if_needed(tmp_path: Path) -> None:
    (tmp_path / "nyudepthv2_test_files_with_gt.txt").write_bytes(b"\xff\xfe\x00")
    assert metres(chosen(write_folder(tmp_path / "mine"))) == [1]
    assert "is not a list of files" in refused(tmp_path, kind="nyu").what
