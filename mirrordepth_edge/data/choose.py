"""From what a user names to the data set it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.data.listed import kb_cropped, listed_dataset
from mirrordepth_edge.data.nyu import NyuLabelled
from mirrordepth_edge.data.sample import DepthDataset, Mapped
from mirrordepth_edge.errors import OptionError

Part = Literal["train", "test"]
MATLAB_SUFFIX = ".mat"


def choose_dataset(
    root: Path,
    part: Part,
    *,
    units_per_metre: float = 1000.0,
    list_file: Path | None = None,
    depth_root: Path | None = None,
    kb_crop: bool = False,
) -> DepthDataset:
    """The data set behind `root`.

    Args:
        root: NYU's labelled `.mat` file; the folder that a list's paths start from; or a folder with
            `rgb` and `depth`.
        part: which part of NYU's official split.
        units_per_metre: of depth PNGs.
        list_file: names the pairs.
        depth_root: where a list's depth is, if not under `root`.
        kb_crop: cut KITTI's pictures to 352x1216.

    Raises:
        OptionError: options that do not go together.
    """
    if list_file is not None:
        listed = listed_dataset(list_file, root, depth_root or root, units_per_metre)
        return Mapped(of=listed, function=kb_cropped) if kb_crop else listed
    if depth_root is not None or kb_crop:
        raise OptionError(
            "--depth-root and --kb-crop go with a list of files.",
            "They describe how KITTI's lists are read.",
            "Name the list: --list eigen_test_files_with_gt.txt",
        )
    if root.suffix == MATLAB_SUFFIX:
        return NyuLabelled(file=root, part=part)
    return folder_dataset(root, units_per_metre)
