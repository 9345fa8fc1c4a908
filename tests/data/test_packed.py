"""NYU Depth v2 in HDF5 files and tar shards, replaced by small ones of the same layout."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.data.packed import PackedPairs, holds_packed, packed_dataset
from mirrordepth_edge.data.sample import DepthDataset
from mirrordepth_edge.errors import InputError

h5py = pytest.importorskip("h5py", reason="fast-depth's files are HDF5")

HEIGHT, WIDTH = 6, 8
TRAIN = ("kitchen_0028b/00001", "kitchen_0028b/00045", "bath_0001/00001")
TEST = ("official/00001", "official/00002")


def write_h5(path: Path, number: int, **changed: np.ndarray) -> None:
    """Red counts columns, green rows, blue is the number; depth is the number and a tenth for each row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    arrays = {
        "rgb": np.stack([columns, rows, np.full_like(rows, number)]).astype(np.uint8),
        "depth": (number + rows / 10).astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in (arrays | changed).items():
            file[key] = array


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "fast"
    for number, name in enumerate(TRAIN):
        write_h5(root / "train" / f"{name}.h5", number)
    for number, name in enumerate(TEST):
        write_h5(root / "val" / f"{name}.h5", 10 + number)
    return root


@pytest.fixture
def shards(folders: Path, tmp_path: Path) -> Path:
    """Two shards for training, one for validation, made by tar itself as Python has it."""
    root = tmp_path / "shards"
    (root / "data").mkdir(parents=True)
    for shard, part, names in (("train-000000", "train", TRAIN[:2]), ("train-000001", "train", TRAIN[2:])):
        with tarfile.open(root / "data" / f"{shard}.tar", "w") as tar:
            for name in names:
                tar.add(folders / part / f"{name}.h5", f"{part}/{name}.h5")
    with tarfile.open(root / "data" / "val-000000.tar", "w") as tar:
        tar.add(folders / "val", "val")
    return root


@pytest.fixture(params=["folders", "shards"])
def root(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def read(root: Path, part: str = "train") -> PackedPairs:
    data = packed_dataset(root, part)  # type: ignore[arg-type]
    assert data is not None
    return data


def test_both_forms_hold_the_same_pictures(root: Path) -> None:
    train, test = read(root), read(root, "test")
    assert sorted(train.name(i) for i in range(len(train))) == sorted(TRAIN)
    assert [sample.name for sample in test] == list(TEST)
    for sample in train:
        number = TRAIN.index(sample.name)
        assert sample.frame.shape == (HEIGHT, WIDTH, 3)
        assert (sample.frame.dtype, sample.depth_m.dtype) == (np.uint8, np.float32)
        assert sample.frame.flags.c_contiguous
        assert sample.frame[4, 7].tolist() == [7, 4, number]
        assert sample.depth_m[4, 7] == pytest.approx(number + 0.4)


def test_files_and_fingerprints(folders: Path, shards: Path) -> None:
    assert [path.name for path in read(shards).files()] == ["train-000000.tar", "train-000001.tar"]
    assert len(read(folders).files()) == len(TRAIN)
    parts = {read(root, part).fingerprint() for root in (folders, shards) for part in ("train", "test")}
    assert len(parts) == 4
    before = read(shards).fingerprint()
    with (shards / "data" / "train-000001.tar").open("ab") as file:
        file.write(b"\0" * 512)
    assert read(shards).fingerprint() != before


def digest(data: DepthDataset) -> float:
    return float(sum(sample.depth_m.sum() + sample.frame.sum() for sample in data))


def test_data_set_can_be_pickled(root: Path) -> None:
    data = read(root)
    data[0]  # nothing of what reading opened may be left
    expected = digest(data)
    assert digest(pickle.loads(pickle.dumps(data))) == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(digest, (data,)) == expected


def test_where_there_is_nothing(folders: Path, tmp_path: Path) -> None:
    assert packed_dataset(tmp_path / "fast" / "train", "train") is None
    assert holds_packed(folders, "train")
    assert not holds_packed(folders / "train", "train")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-of-thought.tar").write_bytes(b"x")
    assert not holds_packed(tmp_path, "train")


def test_as_the_download_unpacks(folders: Path, tmp_path: Path) -> None:
    folders.rename(tmp_path / "nyudepthv2")
    assert len(read(tmp_path)) == len(TRAIN)


def test_macos_files_in_shards_are_ignored(folders: Path, tmp_path: Path) -> None:
    (folders / "train" / "bath_0001" / "._00001.h5").write_bytes(b"attributes")
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        tar.add(folders / "train", "train")
    for root in (folders, tmp_path):
        assert len(list(read(root))) == len(TRAIN)


def test_image_that_exists_twice(shards: Path) -> None:
    again = shards / "data" / "train-000002.tar"
    again.write_bytes((shards / "data" / "train-000001.tar").read_bytes())
    with pytest.raises(InputError, match="twice, such as bath_0001/00001") as caught:
        packed_dataset(shards, "train")
    assert str(again) in caught.value.cure


def test_a_compressed_shard(shards: Path) -> None:
    shard = shards / "data" / "train-000001.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(InputError, match="is compressed") as caught:
        packed_dataset(shards, "train")
    assert "gunzip" in caught.value.cure


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 3]


def header_overwritten(content: bytes) -> bytes:
    """A damaged header of the second member, which tarfile alone mistakes for the end."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        at = tar.getmembers()[1].offset
    return content[:at] + b"\xaa" * 512 + content[at + 512 :]


@pytest.mark.parametrize("damage", [cut_short, header_overwritten, lambda content: b"no tar" * 200])
def test_a_damaged_shard(damage: object, shards: Path) -> None:
    shard = shards / "data" / "train-000000.tar"
    shard.write_bytes(damage(shard.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"train-000000\.tar is not a complete tar file") as caught:
        packed_dataset(shards, "train")
    assert "Download train-000000.tar again" in caught.value.cure


def test_a_damaged_picture_in_a_whole_shard(shards: Path) -> None:
    shard = shards / "data" / "train-000000.tar"
    piece = read(shards).entries[1]
    content = bytearray(shard.read_bytes())
    content[piece.offset : piece.offset + 64] = b"\0" * 64
    shard.write_bytes(content)
    data = read(shards)
    data[0]
    with pytest.raises(InputError, match=rf"{TRAIN[1]} in .*train-000000\.tar is not a NYU image"):
        data[1]


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n and no more", b"text"])
def test_a_damaged_file(content: bytes, folders: Path) -> None:
    path = folders / "train" / f"{TRAIN[2]}.h5"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read(folders))
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    "changed",
    [
        {"rgb": np.zeros((HEIGHT, WIDTH, 3), np.uint8)},
        {"rgb": np.zeros((3, HEIGHT, WIDTH), np.float32)},
        {"depth": np.zeros((HEIGHT, WIDTH), np.uint16)},
        {"depth": np.zeros((WIDTH, HEIGHT), np.float32)},
    ],
)
def test_arrays_of_wrong_type_or_shape(changed: dict[str, np.ndarray], folders: Path) -> None:
    write_h5(folders / "train" / f"{TRAIN[0]}.h5", 0, **changed)
    with pytest.raises(InputError, match="is not an image with depth"):
        list(read(folders))


def test_depth_in_half_or_double_precision_becomes_float32(folders: Path) -> None:
    for number, dtype in ((0, np.float16), (1, np.float64)):
        write_h5(folders / "train" / f"{TRAIN[number]}.h5", 0, depth=np.full((HEIGHT, WIDTH), 1.5, dtype))
    for sample in read(folders):
        assert sample.depth_m.dtype == np.float32
