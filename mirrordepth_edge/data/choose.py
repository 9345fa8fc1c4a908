"""From what a user names to the data set it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mirrordepth_edge.camera.model import Camera, read_camera
from mirrordepth_edge.config import Crop, DataConfig, DataKind, NormalisedFocal
from mirrordepth_edge.data.folder import DEPTH_FOLDERS, PICTURE_FOLDERS, existing_folder, folder_dataset, only_folder
from mirrordepth_edge.data.listed import KB_CROP_HW, kb_cropped, listed_dataset, read_list
from mirrordepth_edge.data.nyu import LABELLED, NyuLabelled, without_border
from mirrordepth_edge.data.packed import holds_packed, packed_dataset
from mirrordepth_edge.data.sample import DepthDataset, Mapped
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.files import existing_file

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")
MATLAB_SUFFIX = ".mat"
ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How the field reads and evaluates a data set."""

    units_per_metre: float = 1000.0
    crop: Crop = "none"
    depth_limits_m: tuple[float, float] = (1e-3, 10.0)
    kb_crop: bool = False
    camera: Camera | None = None
    """What its pictures were taken with, before any crop; None where that is not the same for all."""


# The Kinect of NYU Depth v2: fx_rgb and fy_rgb in camera_params.m of the data set's toolbox.
NYU_CAMERA = Camera(fx_px=518.857901, fy_px=519.469611, width_px=640, height_px=480)
# KITTI's colour cameras, rectified: P_rect_02 in calib_cam_to_cam.txt of 2011_09_26. The other days' differ
# by up to 2 % in pixels, less in shares of the picture's width.
KITTI_CAMERA = Camera(fx_px=721.5377, fy_px=721.5377, width_px=1242, height_px=375)
CAMERA_FILE = "camera.json"
"""Says, in the root of a folder, through which camera all of its pictures are seen (`camera.read_camera`)."""

CONVENTIONS: dict[DataKind, Convention] = {
    "folder": Convention(),
    "nyu": Convention(crop="eigen", camera=NYU_CAMERA),
    "kitti": Convention(
        units_per_metre=256.0, crop="garg", depth_limits_m=(1e-3, 80.0), kb_crop=True, camera=KITTI_CAMERA
    ),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set that comes with lists keeps things, below its root; what is first counts."""

    lists: dict[Part, tuple[str, ...]]
    """Names of the lists, which lie in the root or beside it."""
    pictures: dict[Part, tuple[str, ...]]
    depth: tuple[str, ...] = ()
    """Where depth is; with the pictures where empty."""
    depth_within: tuple[str, ...] = (".",)
    """Folders within those of depth that the lists leave out."""


# As BTS (arXiv 1907.10326), AdaBins and ZoeDepth name them.
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
    """Depth that counts on a kind of data set, in metres: the field's, or a model's own on a folder."""
    return own_m if kind == "folder" else CONVENTIONS[kind].depth_limits_m


def kind_of(config: DataConfig) -> DataKind:
    """The kind of data set: as asked, else by the name of the list, else by what `root` holds.

    Raises:
        OptionError: `root` holds several kinds.
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
            "It holds what is known of each.",
            " or ".join(f"--data {kind}" for kind in kinds),
        )
    return kinds[0] if kinds else "folder"


def choose_dataset(config: DataConfig, part: Part) -> DepthDataset:
    """The data set that `config` describes.

    A list that is named wins. Without one, `root` is searched: for NYU in this order for BTS's list
    with its pictures, the labelled `.mat`, HDF5 files and a folder of rgb and depth; for KITTI for
    BTS's list and such a folder. NYU's training part has no depth near the border
    (`nyu.without_border`).

    Args:
        part: of an official split; a folder has none and is taken whole.

    Raises:
        OptionError: options that do not go together.
        InputError: the files are not there.
    """
    kind = kind_of(config)
    dataset = _read(config, kind, part)
    if kind == "nyu" and part == "train":
        dataset = Mapped(of=dataset, function=without_border)
    return Mapped(of=dataset, function=kb_cropped) if _wants_kb_crop(config, kind) else dataset


def training_focal(config: DataConfig) -> NormalisedFocal | None:
    """fx/W and fy/H of the camera behind a data set's pictures, as `choose_dataset` cuts them.

    The kind's own; for a folder that of its `camera.json`. None where there is no one camera.

    Raises:
        InputError: the folder's `camera.json` holds no camera.
    """
    kind, path = kind_of(config), config.root / CAMERA_FILE
    camera = read_camera(path) if kind == "folder" and path.is_file() else CONVENTIONS[kind].camera
    if camera is not None and _wants_kb_crop(config, kind):
        camera = camera.cropped(KB_CROP_HW)
    return None if camera is None else camera.focal


def _wants_kb_crop(config: DataConfig, kind: DataKind) -> bool:
    return CONVENTIONS[kind].kb_crop if config.kb_crop is None else config.kb_crop


def _read(config: DataConfig, kind: DataKind, part: Part) -> DepthDataset:
    """The data set as its files have it."""
    root, units = config.root, config.units_per_metre or CONVENTIONS[kind].units_per_metre
    if root.suffix == MATLAB_SUFFIX and not root.is_dir():
        existing_file(root, "NYU Depth v2 file")
        if kind != "nyu":
            raise OptionError(f"{root} is not of the kind {kind}.", "It is NYU's .mat file.", "--data nyu")
        _refuse_options_of_png(config, root)
        return NyuLabelled(file=root, part=part)
    existing_folder(root)
    list_file = config.list_file or _list_in(root, kind, part)
    if list_file is not None and (config.list_file is not None or _fits(list_file, root, kind, part)):
        return _listed(config, list_file, kind, part, units)
    if kind == "nyu":
        if (root / LABELLED).is_file():
            _refuse_options_of_png(config, root / LABELLED)
            return NyuLabelled(file=root / LABELLED, part=part)
        packed = packed_dataset(root, part)
        if packed is not None:
            _refuse_options_of_png(config, packed.files()[0])
            return packed
    if all(_folders_in(root)) or (kind == "folder" and (any(_folders_in(root)) or config.kind == "folder")):
        if config.depth_root is not None:
            raise OptionError(
                "--depth-root goes with a list of files.",
                f"{root} is read as rgb beside depth.",
                "Name the list: --list eigen_test_files_with_gt.txt",
            )
        return folder_dataset(root, units)
    if list_file is not None:
        return _listed(config, list_file, kind, part, units)  # which says what of it is missing
    raise _nothing_found(config, kind, part)


def _listed(config: DataConfig, list_file: Path, kind: DataKind, part: Part, units: float) -> DepthDataset:
    layout, root = LAYOUTS[kind], config.root
    pictures = [root / name for name in layout.pictures[part]]
    depth = [root / name for name in layout.depth] or pictures
    if config.depth_root is not None:
        existing_folder(config.depth_root)
        depth = [config.depth_root]
    return listed_dataset(
        list_file, pictures, [folder / name for folder in depth for name in layout.depth_within], units
    )


def _list_in(root: Path, kind: DataKind, part: Part) -> Path | None:
    """The list of a part in `root` or beside it."""
    places = [folder / name for folder in (root, root.absolute().parent) for name in LAYOUTS[kind].lists[part]]
    return next((path for path in places if path.is_file()), None)


def _fits(list_file: Path, root: Path, kind: DataKind, part: Part) -> bool:
    """Whether the first picture of a list is below `root`."""
    try:
        picture = read_list(list_file)[0][0]
    except InputError:
        return False
    return any((root / folder / picture).is_file() for folder in LAYOUTS[kind].pictures[part])


def _folders_in(root: Path) -> tuple[Path | None, Path | None]:
    """The folders of pictures and of depth, as far as they are there."""
    return only_folder(root, PICTURE_FOLDERS), only_folder(root, DEPTH_FOLDERS)


def _kinds_in(root: Path) -> list[DataKind]:
    """Every kind of data set that `root` could be."""
    kinds: list[DataKind] = ["folder"] if all(_folders_in(root)) else []
    for kind in LAYOUTS:
        lists = [(_list_in(root, kind, part), part) for part in PARTS]
        if any(path is not None and _fits(path, root, kind, part) for path, part in lists):
            kinds.append(kind)
    packed = any(holds_packed(root, part) for part in PARTS)
    if "nyu" not in kinds and (packed or (root / LABELLED).is_file()):
        kinds.append("nyu")
    return kinds


def _refuse_options_of_png(config: DataConfig, path: Path) -> None:
    """Metres in HDF5 have no scale to choose, and lie with their pictures."""
    options = {
        "--units-per-metre": config.units_per_metre,
        "--depth-root": config.depth_root,
        "--list": config.list_file,
    }
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise OptionError(
            f"{given[0]} does not go with {path}.",
            "It holds pictures and their depth in metres.",
            f"Leave {given[0]} out, or point --root at a folder of pictures.",
        )


def _nothing_found(config: DataConfig, kind: DataKind, part: Part) -> InputError:
    """What was looked for, and what to type."""
    root, found = config.root, [other for other in _kinds_in(config.root) if other != kind]
    kinds: tuple[DataKind, ...] = ("folder", "nyu", "kitti") if config.kind == "auto" else (kind,)
    folder = "rgb/NAME.jpg beside depth/NAME.png"
    looked_for = []
    for each in kinds:
        layout = LAYOUTS[each]
        if layout.lists[part]:
            places = " or ".join(name for name in layout.pictures[part] if name != ".")
            names = " or ".join(layout.lists[part])
            depth = " or ".join(name for name in layout.depth if name != ".")
            depth = f" and its depth here or in {depth} or --depth-root" if depth else ""
            looked_for.append(f"{names}, here or beside it, with its pictures here or in {places}{depth}")
        if each == "nyu":
            prefix = "train" if part == "train" else "val"
            looked_for += [LABELLED, f"{prefix}/SCENE/NUMBER.h5", f"{prefix}-NUMBER.tar, here or in data"]
    archive = next((path.name for path in sorted(root.iterdir()) if path.suffix in ARCHIVES), None)
    cure = "Point --root at the folder that holds one of these, or name a list of files: --list FILE"
    if found:
        cure = f"It looks like another kind: --data {found[0]}"
    elif archive is not None:
        cure = f"Unpack {archive} first."
    what = "pictures with depth that are known" if config.kind == "auto" else f"{kind.upper()} data"
    return InputError(f"{root} holds no {what}.", f"Looked for {'; '.join([*looked_for, folder])}.", cure)
