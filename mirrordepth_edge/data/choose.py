"""From what a user names to the data set it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mirrordepth_edge.config import Crop, DataConfig, DataKind
from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.data.listed import kb_cropped, listed_dataset
from mirrordepth_edge.data.nyu import NyuLabelled
from mirrordepth_edge.data.sample import DepthDataset, Mapped
from mirrordepth_edge.errors import OptionError

Part = Literal["train", "test"]
MATLAB_SUFFIX = ".mat"


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How the field reads and evaluates a data set."""

    units_per_metre: float = 1000.0
    crop: Crop = "none"
    depth_limits_m: tuple[float, float] = (1e-3, 10.0)
    kb_crop: bool = False


CONVENTIONS: dict[DataKind, Convention] = {
    "folder": Convention(),
    "nyu": Convention(crop="eigen"),
    "kitti": Convention(units_per_metre=256.0, crop="garg", depth_limits_m=(1e-3, 80.0), kb_crop=True),
}


def kind_of(config: DataConfig) -> DataKind:
    """The kind of data set: as asked, else by what `root` is."""
    if config.kind != "auto":
        return config.kind
    return "nyu" if config.root.suffix == MATLAB_SUFFIX else "folder"


def choose_dataset(config: DataConfig, part: Part) -> DepthDataset:
    """The data set that `config` describes.

    Args:
        part: of an official split; a folder has none and is taken whole.

    Raises:
        OptionError: options that do not go together.
        InputError: the files are not there.
    """
    convention = CONVENTIONS[kind_of(config)]
    units = config.units_per_metre or convention.units_per_metre
    kb_crop = convention.kb_crop if config.kb_crop is None else config.kb_crop
    if config.list_file is not None:
        listed = listed_dataset(config.list_file, config.root, config.depth_root or config.root, units)
        return Mapped(of=listed, function=kb_cropped) if kb_crop else listed
    if config.depth_root is not None or config.kb_crop:
        raise OptionError(
            "--depth-root and --kb-crop go with a list of files.",
            "They describe how KITTI's lists are read.",
            "Name the list: --list eigen_test_files_with_gt.txt",
        )
    if config.root.suffix == MATLAB_SUFFIX:
        return NyuLabelled(file=config.root, part=part)
    return folder_dataset(config.root, units)
