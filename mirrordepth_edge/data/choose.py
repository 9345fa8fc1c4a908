"""From what a user names to the data set it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from mirrordepth_edge.data.folder import FolderDataset, Sample
from mirrordepth_edge.data.listed import ListedDataset
from mirrordepth_edge.data.nyu import NyuLabelled
from mirrordepth_edge.errors import OptionError

Part = Literal["train", "test"]
MATLAB_SUFFIX = ".mat"


class DepthDataset(Protocol):
    """Pictures with measured depth, read one at a time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...


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
        return ListedDataset(
            list_file=list_file,
            root=root,
            depth_root=depth_root or root,
            units_per_metre=units_per_metre,
            kb_crop=kb_crop,
        )
    if depth_root is not None or kb_crop:
        raise OptionError(
            "--depth-root and --kb-crop go with a list of files.",
            "They describe how KITTI's lists are read.",
            "Name the list: --list eigen_test_files_with_gt.txt",
        )
    if root.suffix == MATLAB_SUFFIX:
        return NyuLabelled(file=root, part=part)
    return FolderDataset(root=root, units_per_metre=units_per_metre)
