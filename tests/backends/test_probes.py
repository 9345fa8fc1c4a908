"""Probes never raise, and claim no device that does not work: on packages that are absent or broken,
on machines with a GPU that they cannot use, and on an ONNX Runtime of our own making."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mirrordepth_edge.backends import base, pytorch
from mirrordepth_edge.backends import onnxruntime as ort_backend
from mirrordepth_edge.backends.base import Available
from mirrordepth_edge.backends.registry import MODULES, backend
from mirrordepth_edge.backends.trt import cuda, tensorrt_rtx, vendor
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, MissingError
from mirrordepth_edge.machine import device
from mirrordepth_edge.machine.device import CudaDriver, Gpu
from mirrordepth_edge.machine.unavailable import Cause, Unavailable

PACKAGES = {
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
ENGINES = ("tensorrt", "tensorrt-rtx")
CPU, CUDA = ort_backend.CPU_PROVIDER, ort_backend.CUDA_PROVIDER


def gpu(capability: str) -> Gpu:
    return Gpu(name=f"GPU {capability}", compute_capability=capability, memory_mib=8192, integrated=False, cuda="12.6")


ADA, HOPPER = gpu("8.9"), gpu("9.0")


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    ort_backend.cuda_problem.cache_clear()
    yield
    ort_backend.cuda_problem.cache_clear()


@pytest.fixture(autouse=True)
def _bindings(_nothing_remembered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    use_bindings(monkeypatch, "12.6.2.post1")  # as old as the drivers below


def use_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    """A machine with these GPUs, for every backend."""
    driver = CudaDriver(gpus=gpus, problem=None if gpus else "libcuda.so.1 not found: no NVIDIA driver is installed")
    monkeypatch.setattr(device, "cuda_driver", lambda: driver)
    monkeypatch.setattr(ort_backend, "cuda_driver", lambda: driver)


def use_bindings(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """This version of cuda-python, or none, by its metadata."""
    versions = {} if version is None else {"cuda-bindings": version}
    monkeypatch.setattr(cuda, "installed_versions", lambda names: versions)


def use_package(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    """An installed package that imports and has these attributes."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def break_package(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, body: str) -> None:
    """An installed package whose import runs `body`."""
    for package, content in ((name, body), ("open_clip", "")):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, None)  # so that what is there now, or nothing, comes back
    del sys.modules[name]


def hide_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)


def missing(name: str) -> Unavailable:
    """The probe's answer, which keeps the contract and is no `Available`."""
    probe = backend(name).probe()
    assert isinstance(probe, Unavailable), probe
    assert probe.reason
    assert probe.cure
    assert "\n" not in probe.reason
    return probe


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("gpus", [(), (ADA,)], ids=["no GPU", "GPU"])
def test_an_absent_package(name: str, gpus: tuple[Gpu, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, *gpus)
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    probe = missing(name)
    assert probe.cause is Cause.NOT_INSTALLED
    assert "not installed" in probe.reason
    assert "pip install" in probe.cure


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("raise AttributeError('_ARRAY_API not found')", "_ARRAY_API"),
        ("raise RuntimeError('first line' + chr(10) + 'second line')", "first line"),
        ("raise ValueError", "ValueError"),
        ("", "__version__"),  # what one of two wheels that share a package leaves when it goes
    ],
)
def test_a_broken_package(name: str, body: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, ADA)
    break_package(monkeypatch, tmp_path, PACKAGES[name], body)
    if body == "" and name == "onnxruntime":
        word = "has no attribute"
    assert word in missing(name).reason


@pytest.mark.parametrize("name", MODULES)
def test_the_real_machine(name: str) -> None:
    probe = backend(name).probe()
    if isinstance(probe, Unavailable):
        assert probe == missing(name)
        return
    assert probe.version
    assert set(probe.devices) <= {"cpu", *(gpu.name for gpu in device.nvidia_gpus())}


@pytest.mark.parametrize("name", ENGINES)
def test_engines_need_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch)
    use_package(monkeypatch, PACKAGES[name], __version__="10.3.0")
    assert "no NVIDIA GPU" in missing(name).reason


@pytest.mark.parametrize("name", ENGINES)
def test_engines_need_cuda_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, ADA)
    use_package(monkeypatch, PACKAGES[name], __version__="10.3.0")
    hide_cuda_python(monkeypatch)
    probe = missing(name)
    assert "cuda-python" in probe.reason
    assert "cuda-python" in probe.cure


def of_cuda(version: str, *, integrated: bool = False) -> Gpu:
    return replace(ADA, cuda=version, integrated=integrated)


@pytest.mark.parametrize(
    ("bindings", "gpu", "problem"),
    [
        ("13.5.0", of_cuda("12.6"), "cuda-python 13.5.0 is newer than the driver, which supports CUDA up to 12.6"),
        ("13.0.1", of_cuda("12.6", integrated=True), "cuda-python 13.0.1 is newer"),
        ("12.9.4", of_cuda("12.6"), None),  # minor versions are compatible
        ("12.6.2.post1", of_cuda("13.0"), None),  # and drivers serve what is older
        ("13.2.0", of_cuda("13.0"), None),
        (None, of_cuda("12.6"), None),
    ],
)
@pytest.mark.parametrize("name", ENGINES)
def test_a_cuda_python_newer_than_the_driver(
    name: str, bindings: str | None, gpu: Gpu, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every session would fail with cudaErrorInsufficientDriver (35)."""
    use_bindings(monkeypatch, bindings)
    use_gpus(monkeypatch, gpu)
    use_package(monkeypatch, PACKAGES[name], __version__="10.7.0")
    monkeypatch.setattr(cuda, "runtime", lambda: None)
    if problem is None:
        assert isinstance(backend(name).probe(), Available)
        return
    probe = missing(name)
    assert probe.reason.startswith(problem)
    assert probe.cure == cuda.install(gpu)


@pytest.mark.parametrize(
    ("gpu", "cure"),
    [
        (of_cuda("12.6", integrated=True), "pip install 'cuda-python==12.6.*'"),
        (of_cuda("13.2", integrated=True), "pip install 'cuda-python==13.2.*'"),
        (of_cuda("12.2"), "pip install 'cuda-python>=12.6,<13'"),
        (of_cuda("13.0"), "pip install 'cuda-python>=13,<14'"),
        (of_cuda("11.8"), "Update NVIDIA's driver"),
        (of_cuda("12.2", integrated=True), "Install JetPack 6.1 or later"),
        (None, "pip install 'cuda-python==12.6.*' (JetPack 6)"),
    ],
)
def test_which_cuda_python_a_driver_needs(gpu: Gpu | None, cure: str) -> None:
    assert cuda.install(gpu).startswith(cure)


@pytest.mark.parametrize(
    ("bindings", "gpus", "cured"),
    [
        ("13.5.0", (ADA,), True),
        ("12.9.4", (of_cuda("12.6", integrated=True),), True),  # what is said of minor versions is not of a Jetson
        ("12.6.2.post1", (ADA,), False),
        ("13.5.0", (), False),
        (None, (ADA,), False),
    ],
)
def test_a_driver_that_is_too_old_is_cured_by_an_older_cuda_python(
    bindings: str | None, gpus: tuple[Gpu, ...], cured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cudaSetDevice(number: int) -> tuple[int]:  # noqa: N802
        return (35,)

    use_bindings(monkeypatch, bindings)
    monkeypatch.setattr(cuda, "nvidia_gpus", lambda: gpus)
    with pytest.raises(MissingError, match="cudaSetDevice") as caught:
        cuda.call(cudaSetDevice, 0)
    assert "(35)" in caught.value.why
    assert caught.value.cure == (cuda.install(gpus[0]) if cured else cuda.DRIVER_CURE)


@pytest.mark.parametrize("name", ENGINES)
def test_a_broken_cuda_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("cannot dlopen libcudart.so.12")

    use_gpus(monkeypatch, ADA)
    use_package(monkeypatch, PACKAGES[name], __version__="10.3.0")
    monkeypatch.setattr(cuda, "runtime", broken)
    probe = missing(name)
    assert "libcudart.so.12" in probe.reason
    assert "cuda-python" in probe.cure


@pytest.mark.parametrize("name", ENGINES)
def test_engines_run_on_the_first_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, ADA, HOPPER)
    use_package(monkeypatch, PACKAGES[name], __version__="10.3.0")
    monkeypatch.setattr(cuda, "runtime", lambda: None)
    assert backend(name).probe() == Available(version="10.3.0", devices=(ADA.name,))


@pytest.mark.parametrize("capability", ["7.0", "8.7", "9.0", "11.0"])
def test_rtx_serves_rtx_cards_only(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, gpu(capability))
    use_package(monkeypatch, "tensorrt_rtx", __version__="1.7.1")
    probe = missing("tensorrt-rtx")
    assert capability in probe.reason
    assert "--target here" in probe.cure


def test_rtx_compute_capabilities_are_the_packages_own() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    numbers = [int(name.removeprefix("SM")) for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    assert {f"{number // 10}.{number % 10}" for number in numbers} == set(tensorrt_rtx.COMPUTE_CAPABILITIES)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("body", [None, "raise OSError('libnvinfer.so.10')"], ids=["absent", "broken"])
def test_on_arm_no_engine_comes_from_pip(
    name: str, body: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    if body is None:
        monkeypatch.setattr(base, "find_spec", lambda package: None)
    else:
        break_package(monkeypatch, tmp_path, PACKAGES[name], body)
    assert "pip install" not in missing(name).cure


@pytest.mark.parametrize(
    ("architecture", "body", "cure"),
    [
        (
            "aarch64",
            "raise ImportError('libnvinfer.so.10: cannot open shared object file: No such file or directory')",
            "sudo apt update && sudo apt install --reinstall nvidia-jetpack libnvinfer10",
        ),
        (
            "aarch64",
            "raise OSError('/usr/lib/aarch64-linux-gnu/libcudart.so.12: file too short')",
            "sudo apt update && sudo apt install --reinstall nvidia-jetpack",
        ),
        ("x86_64", "raise ImportError('libnvinfer.so.10: cannot open')", "pip install --force-reinstall tensorrt"),
        ("AMD64", "raise ImportError('DLL load failed while importing it')", "pip install --force-reinstall tensorrt"),
        ("aarch64", "raise ImportError('No module named tensorrt.tensorrt')", vendor.JETPACK),
        ("x86_64", "raise ImportError('tensorrt.so: undefined symbol: _Py_x')", vendor.INSTALL["tensorrt"]),
    ],
)
def test_a_missing_library_is_no_missing_package(
    architecture: str, body: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the bindings are there, another venv would find them again, and not what they need."""
    use_gpus(monkeypatch, ADA)
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    break_package(monkeypatch, tmp_path, "tensorrt", body)
    assert missing("tensorrt").cure == cure
    with pytest.raises(MissingError) as caught:
        vendor.import_runtime("tensorrt")
    assert caught.value.cure == cure


def fake_torch(name: Any) -> SimpleNamespace:
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return name is not None

    def get_device_name(index: int) -> str:
        if isinstance(name, Exception):
            raise name
        return str(name)

    return SimpleNamespace(is_available=is_available, get_device_name=get_device_name)


@pytest.mark.parametrize(
    ("name", "devices"), [("Orin", ("cpu", "Orin")), (None, ("cpu",)), (RuntimeError("CUDA error 803"), ("cpu",))]
)
def test_torch_without_its_gpu_still_has_the_cpu(
    name: Any, devices: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_package(monkeypatch, "torch", __version__="2.8.0", cuda=fake_torch(name))
    monkeypatch.setattr(base, "find_spec", lambda package: object())
    assert pytorch.probe() == Available(version="2.8.0", devices=devices)


class FakeOnnxRuntime:
    """An `onnxruntime` package with a CUDA provider that opens, or does not.

    Args:
        opens_on: what `session.get_providers()` answers where CUDA was asked for.
        fails: "session" or "run" on CUDA.
    """

    __version__ = "1.24.4"

    def __init__(self, opens_on: tuple[str, ...] = (CUDA, CPU), fails: str = "") -> None:
        self.compiled_in = [CUDA, CPU]
        self.severities: list[int] = []
        self.asked: list[str] = []
        self.feeds: list[str] = []
        owner = self

        class InferenceSession:
            def __init__(self, model: str | bytes, settings: Any, providers: list[str], enable_fallback: int) -> None:
                owner.asked += providers
                self.providers = list(opens_on) if providers == [CUDA] else [CPU]
                assert settings.log_severity_level == ort_backend.LOG_FATAL
                assert enable_fallback == 0
                if fails == "session" and providers == [CUDA]:
                    raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient")

            def get_providers(self) -> list[str]:
                return self.providers

            def disable_fallback(self) -> None:
                pass

            def run(self, names: None, feeds: dict[str, Any]) -> list[Any]:
                owner.feeds += feeds
                if fails == "run":
                    raise RuntimeError("CUDA error 209: no kernel image is available")
                return list(feeds.values())

        self.InferenceSession = InferenceSession

    def SessionOptions(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace()

    def get_available_providers(self) -> list[str]:
        return self.compiled_in

    def set_default_logger_severity(self, level: int) -> None:
        self.severities.append(level)

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9: libcudnn.so.9: cannot open shared object file")
        print("Please follow https://onnxruntime.ai/docs/install/")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
        names = [name for name in (*dir(type(self)), *vars(self)) if name == "__version__" or not name.startswith("_")]
        use_package(monkeypatch, "onnxruntime", **{name: getattr(self, name) for name in names})
        return self


def test_onnxruntime_on_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use_gpus(monkeypatch, ADA, HOPPER)
    fake = FakeOnnxRuntime().install(monkeypatch)
    assert ort_backend.probe() == Available(version="1.24.4", devices=("cpu", ADA.name))
    assert ort_backend.probe() == ort_backend.probe()
    assert fake.asked == [CUDA]  # once
    assert fake.feeds == ["x"]
    assert fake.severities == [ort_backend.LOG_FATAL, ort_backend.LOG_WARNING]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (FakeOnnxRuntime(opens_on=(CPU,)), ("1.24.4", "cannot be loaded", "libcudnn.so.9")),
        (FakeOnnxRuntime(fails="session"), ("fails on CUDA", "driver version is insufficient")),
        (FakeOnnxRuntime(fails="run"), ("fails on CUDA", "no kernel image")),
    ],
)
def test_onnxruntime_on_a_gpu_that_it_cannot_use(
    fake: FakeOnnxRuntime, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_gpus(monkeypatch, ADA)
    fake.install(monkeypatch)
    assert ort_backend.probe() == Available(version="1.24.4", devices=("cpu",))
    problem = ort_backend.cuda_problem()
    assert problem is not None
    for word in words:
        assert word in problem
    assert fake.severities == [ort_backend.LOG_FATAL, ort_backend.LOG_WARNING]
    assert capsys.readouterr().out == ""
    with pytest.raises(MissingError, match="cannot use the GPU") as caught:
        ort_backend.create_inference_session(Path("model.onnx"), SessionOptions(device="cuda"))
    assert caught.value.why == problem
    assert "--device cpu" in caught.value.cure


def test_onnxruntime_before_preload_dlls(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, ADA)
    FakeOnnxRuntime().install(monkeypatch)
    monkeypatch.delattr(sys.modules["onnxruntime"], "preload_dlls")
    assert ort_backend.cuda_problem() is None


def test_onnxruntime_whose_preload_fails_may_still_find_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def preload() -> None:
        raise RuntimeError("Invalid parameter of directory")

    use_gpus(monkeypatch, ADA)
    FakeOnnxRuntime().install(monkeypatch)
    monkeypatch.setattr(sys.modules["onnxruntime"], "preload_dlls", preload)
    assert ort_backend.cuda_problem() is None


@pytest.mark.parametrize(
    ("gpus", "compiled_in", "word"), [((), [CUDA, CPU], "libcuda.so.1"), ((ADA,), [CPU], "built without CUDA")]
)
def test_nothing_is_tried_where_it_cannot_work(
    gpus: tuple[Gpu, ...], compiled_in: list[str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpus(monkeypatch, *gpus)
    fake = FakeOnnxRuntime().install(monkeypatch)
    fake.compiled_in[:] = compiled_in
    assert word in str(ort_backend.cuda_problem())
    assert fake.asked == []


@pytest.mark.parametrize(
    ("wanted", "loads", "provider"),
    [("auto", True, CUDA), ("auto", False, CPU), ("cuda", True, CUDA), ("cpu", True, CPU), ("cpu", False, CPU)],
)
def test_the_provider_of_a_session(wanted: Any, loads: bool, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, ADA)
    fake = FakeOnnxRuntime(opens_on=(CUDA, CPU) if loads else (CPU,)).install(monkeypatch)
    session = ort_backend.create_inference_session(Path("model.onnx"), SessionOptions(device=wanted))
    assert session.get_providers()[0] == provider
    assert fake.asked == ([CPU] if wanted == "cpu" else [CUDA, provider])  # the GPU is left alone for "cpu"


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_model_that_lands_on_the_cpu_is_refused(wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpus(monkeypatch, ADA)
    FakeOnnxRuntime(opens_on=(CPU,)).install(monkeypatch)
    monkeypatch.setattr(ort_backend, "cuda_problem", lambda: None)
    with pytest.raises(MissingError, match="on the GPU"):
        ort_backend.create_inference_session(Path("model.onnx"), SessionOptions(device=wanted))


def test_the_real_onnxruntime_where_the_gpu_is_a_lie(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its CUDA provider is asked for, does not open, and nothing is printed by C++ or Python."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    if device.nvidia_gpus():
        pytest.skip("this machine has a GPU")
    use_gpus(monkeypatch, ADA)
    probe = ort_backend.probe()
    assert isinstance(probe, Available)
    assert probe.devices == ("cpu",)
    assert ort_backend.cuda_problem()
    assert capfd.readouterr() == ("", "")


def test_the_small_model_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    path = tmp_path / "small.onnx"
    path.write_bytes(ort_backend._small_model())
    session = ort_backend.create_inference_session(path, SessionOptions(device="cpu", threads=1))
    (y,) = session.run(None, {"x": np.array([-3.0], np.float32)})
    assert y.tolist() == [0.0]
    assert session.get_providers() == [CPU]
    path.write_text("no model")
    with pytest.raises(InputError, match="cannot load"):
        ort_backend.create_inference_session(path, SessionOptions(device="cpu"))


def test_sessions_tell_the_runtimes_version(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    path = tmp_path / "small.onnx"
    path.write_bytes(ort_backend._small_model())
    about: Any = SimpleNamespace(inputs=(), outputs=(), precision="fp32", quantisation=None, sizes=None)
    about.at = lambda *_: about
    with ort_backend.OnnxRuntimeSession(path, about, SessionOptions(device="cpu", threads=1)) as session:
        assert (session.version, session.device) == (ort.__version__, "cpu")


def test_every_backend_is_probed_here() -> None:
    assert list(PACKAGES) == list(MODULES)
