"""NYU Depth v2's MATLAB file, replaced by a small HDF5 file of the same layout."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.config import DataConfig
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.data.nyu import NyuLabelled, without_border
from mirrordepth_edge.data.packed import PARTS
from mirrordepth_edge.data.sample import Sample
from mirrordepth_edge.errors import InputError

h5py = pytest.importorskip("h5py", reason="NYU's .mat file is HDF5")
savemat = pytest.importorskip("scipy.io", reason="splits.mat is MATLAB 5").savemat

COUNT, HEIGHT, WIDTH = 5, 6, 8


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Five pairs, stored columns first as MATLAB does; picture i is i in blue, its depth i + row / 10."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pictures = np.stack([np.stack([columns, rows, np.full_like(rows, i)]) for i in range(COUNT)]).astype(np.uint8)
    raw = np.stack([i + rows / 10 for i in range(COUNT)]).astype(np.float32)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w") as data:
        data["images"] = pictures.transpose(0, 1, 3, 2)
        data["rawDepths"] = raw.transpose(0, 2, 1)
        data["depths"] = raw.transpose(0, 2, 1) + 100
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[3], [4], [5]]), "testNdxs": np.array([[1], [2]])})
    return path


def test_the_official_split_counts_from_one(labelled: Path) -> None:
    train, test = (NyuLabelled(file=labelled, part=part) for part in ("train", "test"))  # type: ignore[arg-type]
    assert (len(train), len(test)) == (3, 2)
    assert [sample.name for sample in train] == ["0002", "0003", "0004"]
    assert [int(sample.frame[0, 0, 2]) for sample in test] == [0, 1]


def test_pictures_are_upright_and_depth_is_raw(labelled: Path) -> None:
    first = next(iter(choose_dataset(DataConfig(root=labelled), "train")))
    assert first.frame.shape == (HEIGHT, WIDTH, 3)
    assert first.frame.dtype == np.uint8
    assert first.frame[4, 7].tolist() == [7, 4, 2]
    assert first.depth_m.shape == (HEIGHT, WIDTH)
    assert first.depth_m[4, 7] == pytest.approx(2.4)


def test_missing_and_wrong_files(labelled: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.mat"
    savemat(splits, {"something": np.zeros(2)})
    with pytest.raises(InputError, match="official split"):
        len(NyuLabelled(file=labelled, part="test"))
    splits.unlink()
    with pytest.raises(InputError, match="no official split"):
        len(NyuLabelled(file=labelled, part="test"))


def test_file_that_is_not_hdf5(labelled: Path) -> None:
    labelled.write_bytes(b"MATLAB 5.0 MAT-file" * 20)
    with pytest.raises(InputError, match="not a labelled NYU"):
        list(NyuLabelled(file=labelled, part="test"))


def test_split_index_out_of_range(labelled: Path, tmp_path: Path) -> None:
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1]]), "testNdxs": np.array([[1449]])})
    with pytest.raises(InputError, match="not a labelled NYU"):
        list(NyuLabelled(file=labelled, part="test"))


def test_fingerprint_depends_on_part_and_split(labelled: Path, tmp_path: Path) -> None:
    def fingerprints() -> set[str]:
        return {NyuLabelled(file=labelled, part=part).fingerprint() for part in PARTS}

    before = fingerprints()
    assert len(before) == 2
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.arange(1, 4)[:, None], "testNdxs": np.array([[4], [5], [1]])})
    assert not before & fingerprints()


def test_data_set_can_be_pickled(labelled: Path) -> None:
    data = NyuLabelled(file=labelled, part="train")
    data[0]
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again[1].frame, data[1].frame)


def test_depth_near_the_border_is_no_value() -> None:
    frame = np.zeros((480, 640, 3), np.uint8)
    measured = np.ones((480, 640), np.float32)
    sample = without_border(Sample("1", frame, measured))
    rows, columns = np.nonzero(sample.depth_m)
    # BTS: PIL's crop (left 43, upper 45, right 608, lower 472), whose right and lower are outside.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 471, 43, 607)
    assert np.count_nonzero(sample.depth_m) == (472 - 45) * (608 - 43)
    assert sample.depth_m.dtype == np.float32
    assert sample.frame is frame, "the picture is whole"
    assert measured.all(), "and what was read is as it was"


def test_pictures_of_another_size_have_no_border() -> None:
    sample = Sample("1", np.zeros((240, 320, 3), np.uint8), np.ones((240, 320), np.float32))
    assert without_border(sample) is sample
