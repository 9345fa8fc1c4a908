"""Personal data is removed from texts, whatever its form."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrordepth_edge.bench.redact import SERIAL_FILES, Anonymiser

ALICE = Anonymiser.of(["alice", "wonderland-pc", "1424923012345"], ["/home/alice", "/data/alice x/project"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cannot write /home/alice/.cache/engines/nano.plan: full", "Cannot write …/.cache/engines/nano.plan: full"),
        ("'/data/alice x/project/a.onnx' is damaged", "'…/a.onnx' is damaged"),
        ("/mnt/bob/models/a.onnx is gone", "…/a.onnx is gone"),
        ("in /srv/private/", "in …"),
        (r"C:\Users\Bob\a.onnx, D:/b/c.plan", "…/a.onnx, …/c.plan"),
        (r"\\server\share\a.onnx", "…/a.onnx"),
        ("file:///tmp/x/a.onnx", "…/a.onnx"),
        ("~/a.onnx and ~bob/b.onnx", "…/a.onnx and …/b.onnx"),
        ("alice@wonderland-pc", "…@…"),
        ("Alice's WONDERLAND-PC, not malice", "…'s …, not malice"),
        ("from 192.168.1.20:8000 and fe80::1ff:fe23:4567:890a", "from …:8000 and …"),
        ("2001:0db8:0000:0000:0000:ff00:0042:8329", "…"),
        ("02:42:ac:11:00:02", "…"),
        ("GPU-1b3f0c0e-7a1e-9c2d-8a55-00c0ffee1234", "GPU-…"),
        ("serial number: 0424321987654", "…"),
        ("board 1424923012345 here", "board … here"),
        ("mail alice.l@example.org", "mail …"),
    ],
)
def test_personal_data_is_removed(text: str, expected: str) -> None:
    assert ALICE.text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "node /decoder/layer.0/MatMul (MatMul): unsupported",
        "62.8 ms, 15.9 frames/s, 1/2 of 640x480, 95 %",
        "https://docs.nvidia.com/deeplearning/tensorrt/latest/index.html",
        "TensorRT 10.3.0, driver 540.4.0, CUDA 12.6 on NVIDIA Jetson Orin Nano",
        "serial runs are slower; 12:34:56",
        "a/b and c/d",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert ALICE.text(text) == text


def test_a_version_of_four_numbers_is_not_an_address() -> None:
    assert ALICE.version("10.3.0.30") == "10.3.0.30"
    assert ALICE.version("10.3.0.30-1+cuda12.5") == "10.3.0.30-1+cuda12.5"
    assert ALICE.version("2.14+alice") == "2.14+…"
    assert ALICE.version("from 10.3.0.30") == "from …", "that is a sentence"
    cleaned = ALICE.value({"packages": {"tensorrt": "10.3.0.30"}, "why": "10.3.0.30"}, frozenset({"packages"}))
    assert cleaned == {"packages": {"tensorrt": "10.3.0.30"}, "why": "…"}


def test_nested_values_are_cleaned() -> None:
    cleaned = ALICE.value(
        {"a": [1, None, True, ("alice", {"name": "alice"})], "fixed": "alice"}, fixed=frozenset({"fixed"})
    )
    assert cleaned == {"a": [1, None, True, ["…", {"name": "…"}]], "fixed": "alice"}


@pytest.mark.parametrize("name", ["nvidia", "orin", "root", "Jetson", "ubuntu", "nano", "al", ""])
def test_default_names_stay(name: str) -> None:
    text = "NVIDIA Jetson Orin Nano, root, ubuntu, al"
    assert Anonymiser.of([name], []).text(text) == text


def test_names_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USER", "mallory")
    monkeypatch.setenv("SUDO_USER", "trudy")
    monkeypatch.setenv("HOME", str(tmp_path / "peggy"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "peggy"))
    monkeypatch.setattr("platform.node", lambda: "victor.example.org")
    for number, file in enumerate(SERIAL_FILES):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"SN{number}0123456\0\n", encoding="utf-8")
    (tmp_path / "lab7").mkdir()
    here = Anonymiser.here(tmp_path)
    planted = ["mallory", "trudy", "peggy", "victor.example.org", "victor", *(f"SN{n}0123456" for n in range(7))]
    text = here.text(f"{' '.join(planted)} {tmp_path / 'peggy' / 'x.onnx'} {Path.cwd()} /lab7/x")
    assert not [secret for secret in planted if secret in text]
    assert str(Path.cwd()) not in text
    assert "lab7" not in text, "it is at this machine's root"
