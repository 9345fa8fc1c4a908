"""Choice of the data set that the options of a command line describe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.camera.model import Camera, read_camera
from mirrordepth_edge.config import Crop, DataConfig, DataKind, NormalisedFocal
from mirrordepth_edge.data.folder import DEPTH_FOLDERS, PICTURE_FOLDERS, existing_folder, folder_dataset, only_folder
from mirrordepth_edge.data.listed import KB_CROP_HW, kb_cropped, listed_dataset, read_list
from mirrordepth_edge.data.nyu import LABELLED, NyuLabelled, without_border
from mirrordepth_edge.data.packed import PARTS, PUBLISHED_AS, Part, holds_packed, packed_dataset
from mirrordepth_edge.data.sample import DepthDataset, Mapped
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.files import existing_file

MATLAB_SUFFIX = ".mat"
RGBD_FOLDERS = "rgb/NAME.jpg and depth/NAME.png"
ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Conventions by which a data set is read and evaluated in the literature."""

    units_per_metre: float = 1000.0
    crop: Crop = "none"
    depth_limits_m: tuple[float, float] = (1e-3, 10.0)
    kb_crop: bool = False
    camera: Camera | None = None
    """Camera of its images before any crop; None if they were taken with several."""


# The Kinect of NYU Depth v2: fx_rgb and fy_rgb in camera_params.m of the data set's toolbox.
NYU_CAMERA = Camera(fx_px=518.857901, fy_px=519.469611, width_px=640, height_px=480)
# KITTI's colour cameras, rectified: P_rect_02 in calib_cam_to_cam.txt of 2011_09_26. The other days' differ
# by up to 2 % in pixels, less relative to the image width.
KITTI_CAMERA = Camera(fx_px=721.5377, fy_px=721.5377, width_px=1242, height_px=375)
CAMERA_FILE = "camera.json"
"""In the root of a folder: the camera of all of its images (`camera.model.read_camera`)."""

CONVENTIONS: dict[DataKind, Convention] = {
    "folder": Convention(),
    "nyu": Convention(crop="eigen", camera=NYU_CAMERA),
    "kitti": Convention(
        units_per_metre=256.0, crop="garg", depth_limits_m=(1e-3, 80.0), kb_crop=True, camera=KITTI_CAMERA
    ),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout of a data set that comes with lists of files. Of several alternatives the first that exists is used."""

    lists: dict[Part, tuple[str, ...]]
    """Names of the lists, in the root or beside it."""
    pictures: dict[Part, tuple[str, ...]]
    """Folders of images below the root."""
    depth: tuple[str, ...] = ()
    """Folders of depth below the root; if empty, depth lies with the images."""
    depth_within: tuple[str, ...] = (".",)
    """Folders below those of depth that the lists omit."""


# Named as by BTS (arXiv 1907.10326), AdaBins and ZoeDepth.
LAYOUTS: dict[DataKind, Layout] = {
    "folder": Layout(lists={"train": (), "test": ()}, pictures={"train": (".",), "test": (".",)}),
    "nyu": Layout(
        lists={"train": ("nyudepthv2_train_files_with_gt.txt",), "test": ("nyudepthv2_test_files_with_gt.txt",)},
        pictures={"train": ("sync", "."), "test": ("official_splits/test", "test", ".")},
    ),
    "kitti": Layout(
        lists={
            "train": ("eigen_train_files_with_gt.txt", "kitti_eigen_train_files_with_gt.txt"),
            "test": ("eigen_test_files_with_gt.txt", "kitti_eigen_test_files_with_gt.txt"),
        },
        pictures={"train": ("raw", "input", "."), "test": ("raw", "input", ".")},
        depth=("data_depth_annotated", "gts", "gt_depth", "."),
        depth_within=(".", "train", "val"),
    ),
}


def depth_limits_on(kind: DataKind, own_m: tuple[float, float]) -> tuple[float, float]:
    """Range of evaluated depth, metres: the convention of the data set, or `own_m` of the model for a folder."""
    return own_m if kind == "folder" else CONVENTIONS[kind].depth_limits_m


def kind_of(config: DataConfig) -> DataKind:
    """Determine the kind of data set: as configured, else by the name of the list, else by the files in `root`.

    Raises:
        OptionError: `root` matches several kinds.
    """
    if config.kind != "auto":
        return config.kind
    if config.list_file is not None:
        name = config.list_file.name
        return next((kind for kind, layout in LAYOUTS.items() if name in sum(layout.lists.values(), ())), "folder")
    if config.root.suffix == MATLAB_SUFFIX:
        return "nyu"
    kinds = _kinds_in(config.root)
    if len(kinds) > 1:
        raise OptionError(
            f"{config.root} could be {' or '.join(kinds)}.",
            "It has files of each.",
            " or ".join(f"--data {kind}" for kind in kinds),
        )
    return kinds[0] if kinds else "folder"


def choose_dataset(config: DataConfig, part: Part) -> DepthDataset:
    """Open the data set that `config` describes.

    An explicit list takes precedence. Otherwise `root` is searched. NYU, in this order: BTS's list with its
    images, the labelled `.mat`, HDF5 files, a folder of rgb and depth. KITTI: BTS's list, such a folder. Depth
    near the border is removed from NYU's training part (`nyu.without_border`).

    Args:
        config: root and options.
        part: part of an official split; a folder has no split and is used whole.

    Raises:
        OptionError: options exclude each other.
        InputError: files are missing.
    """
    kind = kind_of(config)
    dataset = _open(config, kind, part)
    if kind == "nyu" and part == "train":
        dataset = Mapped(of=dataset, function=without_border)
    return Mapped(of=dataset, function=kb_cropped) if _wants_kb_crop(config, kind) else dataset


def training_focal(config: DataConfig) -> NormalisedFocal | None:
    """fx/W and fy/H of the camera of a data set, after the crops of `choose_dataset`.

    Known for NYU and KITTI; read from `camera.json` for a folder. None if there is no single camera.

    Raises:
        InputError: `camera.json` describes no camera.
    """
    kind, path = kind_of(config), config.root / CAMERA_FILE
    camera = read_camera(path) if kind == "folder" and path.is_file() else CONVENTIONS[kind].camera
    if camera is not None and _wants_kb_crop(config, kind):
        camera = camera.cropped(KB_CROP_HW)
    return None if camera is None else camera.focal


def _wants_kb_crop(config: DataConfig, kind: DataKind) -> bool:
    return CONVENTIONS[kind].kb_crop if config.kb_crop is None else config.kb_crop


def _open(config: DataConfig, kind: DataKind, part: Part) -> DepthDataset:
    """The data set as stored, before any crop."""
    root = config.root
    if root.suffix == MATLAB_SUFFIX and not root.is_dir():
        return _open_labelled(config, root, kind, part)
    existing_folder(root)
    list_file = config.list_file or _find_list(root, kind, part)
    if list_file is not None and (config.list_file is not None or _list_matches(list_file, root, kind, part)):
        return _open_list(config, list_file, kind, part)
    if kind == "nyu":
        if (root / LABELLED).is_file():
            return _open_labelled(config, root / LABELLED, kind, part)
        if packed := packed_dataset(root, part):
            _refuse_png_options(config, packed.files()[0])
            return packed
    folders = _rgb_and_depth_folders(root)
    # One of the two is enough for the kind "folder": its reader then reports the missing one.
    if all(folders) or (kind == "folder" and (any(folders) or config.kind == "folder")):
        if config.depth_root is not None:
            raise OptionError(
                "--depth-root requires a list of files.",
                f"{root} is read as a folder of rgb and depth.",
                "Name the list: --list eigen_test_files_with_gt.txt",
            )
        return folder_dataset(root, _units_per_metre(config, kind))
    if list_file is not None:
        return _open_list(config, list_file, kind, part)  # raises and names the missing files
    raise _no_dataset(config, kind, part)


def _open_labelled(config: DataConfig, file: Path, kind: DataKind, part: Part) -> NyuLabelled:
    existing_file(file, "NYU Depth v2 file")
    if kind != "nyu":
        raise OptionError(f"{file} is not a {kind} data set.", "It is the .mat file of NYU Depth v2.", "--data nyu")
    _refuse_png_options(config, file)
    return NyuLabelled(file=file, part=part)


def _open_list(config: DataConfig, list_file: Path, kind: DataKind, part: Part) -> DepthDataset:
    layout, root = LAYOUTS[kind], config.root
    pictures = [root / name for name in layout.pictures[part]]
    depth = [root / name for name in layout.depth] or pictures
    if config.depth_root is not None:
        depth = [existing_folder(config.depth_root)]
    depth = [folder / name for folder in depth for name in layout.depth_within]
    return listed_dataset(list_file, pictures, depth, _units_per_metre(config, kind))


def _units_per_metre(config: DataConfig, kind: DataKind) -> float:
    return config.units_per_metre or CONVENTIONS[kind].units_per_metre


def _find_list(root: Path, kind: DataKind, part: Part) -> Path | None:
    """Find the list of a part in `root` or beside it."""
    places = [folder / name for folder in (root, root.absolute().parent) for name in LAYOUTS[kind].lists[part]]
    return next((path for path in places if path.is_file()), None)


def _list_matches(list_file: Path, root: Path, kind: DataKind, part: Part) -> bool:
    """Whether the first image of a list exists below `root`."""
    try:
        image = read_list(list_file)[0][0]
    except InputError:
        return False
    return any((root / folder / image).is_file() for folder in LAYOUTS[kind].pictures[part])


def _rgb_and_depth_folders(root: Path) -> tuple[Path | None, Path | None]:
    """Folders of images and of depth; None for one that is missing."""
    return only_folder(root, PICTURE_FOLDERS), only_folder(root, DEPTH_FOLDERS)


def _kinds_in(root: Path) -> list[DataKind]:
    """Every kind of data set that `root` matches."""
    kinds: list[DataKind] = ["folder"] if all(_rgb_and_depth_folders(root)) else []
    for kind in LAYOUTS:
        lists = [(_find_list(root, kind, part), part) for part in PARTS]
        if any(path is not None and _list_matches(path, root, kind, part) for path, part in lists):
            kinds.append(kind)
    packed = any(holds_packed(root, part) for part in PARTS)
    if "nyu" not in kinds and (packed or (root / LABELLED).is_file()):
        kinds.append("nyu")
    return kinds


def _refuse_png_options(config: DataConfig, path: Path) -> None:
    """Refuse options of depth PNGs: HDF5 files hold metres, and images with their depth."""
    options = {
        "--units-per-metre": config.units_per_metre,
        "--depth-root": config.depth_root,
        "--list": config.list_file,
    }
    if given := [option for option, value in options.items() if value is not None]:
        raise OptionError(
            f"{given[0]} does not apply to {path}.",
            "It holds images with their depth in metres.",
            f"Leave {given[0]} out, or point --root at a folder of images.",
        )


def _no_dataset(config: DataConfig, kind: DataKind, part: Part) -> InputError:
    """The error for a root without a data set: what was expected, and what to do."""
    root, others = config.root, [other for other in _kinds_in(config.root) if other != kind]
    archive = next((path.name for path in sorted(root.iterdir()) if path.suffix in ARCHIVES), None)
    if others:
        cure = f"It looks like another data set: --data {others[0]}"
    elif archive is not None:
        cure = f"Unpack {archive} first."
    elif config.kind == "auto":
        cure = "Check --root. To list what is expected of NYU or KITTI, add --data nyu or --data kitti."
    else:
        cure = "Point --root at the folder that holds one of these, or name a list of files: --list FILE"
    if config.kind == "auto":
        return InputError(f"{root} has no RGB-D pairs.", f"Expected {RGBD_FOLDERS}.", cure)
    expected = "; ".join([*_expected_files(kind, part), RGBD_FOLDERS])
    return InputError(f"{root} has no {kind.upper()} data.", f"Expected one of: {expected}.", cure)


def _expected_files(kind: DataKind, part: Part) -> Iterator[str]:
    """Describe the files that a kind of data set is recognised by, besides a folder of rgb and depth."""
    layout, prefix = LAYOUTS[kind], PUBLISHED_AS[part]
    if layout.lists[part]:
        images, depth = (
            " or ".join(name for name in names if name != ".") for names in (layout.pictures[part], layout.depth)
        )
        with_depth = f" and depth in {depth} or --depth-root" if depth else ""
        yield f"{' or '.join(layout.lists[part])} in or beside --root, with images in {images}{with_depth}"
    if kind == "nyu":
        yield from (LABELLED, f"{prefix}/SCENE/NUMBER.h5", f"{prefix}-NUMBER.tar")
