"""Reads the CUDA toolkit's folders and version, and the GPUs to compile for."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .report import BuildError

NATIVE, EVERY = "native", "every"
# Without one of these no program can use a GPU, even if the driver's version is known (as in
# a container that is being built): Linux, WSL.
GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/usr/lib/wsl/lib/libcuda.so.1"))
DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"
MODEL = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)
VERSION = re.compile(r"^\s*#\s*define\s+CUDA_VERSION\s+(\d+)", re.MULTILINE)
# llama.cpp's list for a build that is not native (ggml-cuda/CMakeLists.txt), as (from, before,
# architectures), with versions as in CUDA_VERSION.
ARCHITECTURES = (
    (0, 13000, "50-virtual;61-virtual;70-virtual"),
    (0, 99999, "75-virtual;80-virtual;86-real"),
    (11080, 99999, "89-real;90-virtual"),
    (12080, 99999, "120a-real"),
    (12090, 99999, "121a-real"),
)


@dataclass(frozen=True, slots=True)
class Cuda:
    """The toolkit and the GPUs that a CUDA build depends on."""

    version: str
    """The toolkit's version, such as 13.0; empty if there is no toolkit."""
    architectures: str
    """`native` for this machine's GPUs, `every` if there is none, or the value of CUDAARCHS."""
    gpus: tuple[str, ...] = ()
    """The models of the GPUs that a native build is for; empty if the system does not list them."""


NO_CUDA = Cuda("", EVERY)


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA toolkit on disk."""

    root: Path
    nvcc: str
    number: int
    """CUDA_VERSION, such as 13000 for 13.0; 0 if no header defines it."""
    includes: tuple[Path, ...]
    libraries: Path | None
    """The folder that contains libcudart."""

    @property
    def version(self) -> str:
        return f"{self.number // 1000}.{self.number % 1000 // 10}" if self.number else ""

    def has(self, header: str) -> bool:
        return any((folder / header).is_file() for folder in self.includes)


def read_cuda(env: Mapping[str, str], nvcc: str | None) -> Cuda:
    """Return the toolkit and GPUs of this machine, without starting a program."""
    version = toolkit_of(nvcc).version if nvcc else ""
    if setting := env.get("CUDAARCHS", "").strip():
        return Cuda(version, setting)
    if any(path.exists() for path in GPU_DEVICES):
        return Cuda(version, NATIVE, find_gpus())
    return Cuda(version, EVERY)


def find_gpus(driver: Path = DRIVER_GPUS, devices: Path = PCI_DEVICES) -> tuple[str, ...]:
    """Return the NVIDIA GPUs' models: the driver's names, else their device numbers on the
    PCI bus.
    """
    texts = [_text(path) for path in driver.glob("*/information")]
    if names := {found[1] for text in texts if (found := MODEL.search(text))}:
        return tuple(sorted(names))
    return tuple(
        sorted(
            {
                _text(folder / "device").strip()
                for folder in devices.glob("*")
                if _text(folder / "vendor").strip() == NVIDIA_VENDOR
                and _text(folder / "class").startswith(DISPLAY_CLASS)
            }
        )
    )


def toolkit_of(nvcc: str | None) -> Toolkit:
    """Return the toolkit that a compiler belongs to. Raises BuildError if there is no compiler."""
    if nvcc is None:
        raise BuildError(
            "a CUDA build needs CUDA's compiler, and no nvcc is on PATH or in CUDA_HOME",
            hint="install the CUDA toolkit, or name its folder in CUDA_HOME; DECANT_BACKEND=cpu"
            " builds without it",
        )
    path = Path(shutil.which(nvcc) or nvcc).absolute()
    roots = list(dict.fromkeys([path.resolve().parents[1], path.parents[1]]))
    for root in roots:
        includes = _folders(root, "include")
        number = max((_number(folder / "cuda.h") for folder in includes), default=0)
        if number:
            break
    else:
        root, number = roots[-1], 0
        includes = _folders(root, "include")
    libraries = _folders(root, "lib64", "lib")
    with_runtime = [one for one in libraries if any(one.glob("libcudart.so*"))]
    return Toolkit(root, str(path), number, includes, next(iter(with_runtime), None))


def checked_toolkit(nvcc: str | None) -> Toolkit:
    """Return the toolkit if it has cuBLAS. Raises BuildError, with the missing package, if not."""
    toolkit = toolkit_of(nvcc)
    if toolkit.number and not toolkit.has("cublas_v2.h"):
        raise BuildError(
            f"the CUDA toolkit in `{toolkit.root}` has no cuBLAS: no cublas_v2.h is in"
            f" {', '.join(f'`{folder}`' for folder in toolkit.includes)}",
            hint=f"{_cublas_hint(toolkit.version)}; DECANT_BACKEND=cpu builds without CUDA",
        )
    return toolkit


def cuda_options(toolkit: Toolkit, cuda: Cuda, env: Mapping[str, str]) -> dict[str, str]:
    """Return CMake's options for a toolkit and the GPUs to compile for."""
    options = {}
    if not env.get("CUDAToolkit_ROOT"):  # else CMake uses that one
        options["CUDAToolkit_ROOT"] = str(toolkit.root)
    if toolkit.libraries is not None:
        # the build then finds the toolkit's libraries even if ldconfig does not list them
        options["CMAKE_BUILD_RPATH"] = str(toolkit.libraries)
    if cuda.architectures == EVERY:
        options["CMAKE_CUDA_ARCHITECTURES"] = every_architecture(toolkit.number)
    elif cuda.architectures != NATIVE:
        options["CMAKE_CUDA_ARCHITECTURES"] = cuda.architectures
    return options


def every_architecture(number: int) -> str:
    """Return the architectures that a toolkit of CUDA_VERSION `number` can compile for."""
    return ";".join(names for since, before, names in ARCHITECTURES if since <= number < before)


def suits(made: Cuda, here: Cuda) -> bool:
    """Return whether a build for `made` runs on a machine that would build for `here`.

    An image is built without a GPU, or runs without the toolkit that built it.
    """
    if made.architectures == EVERY:
        return True
    same = (made.architectures, made.gpus) == (here.architectures, here.gpus)
    return same and here.version in ("", made.version)


def _folders(root: Path, *names: str) -> tuple[Path, ...]:
    """Return a toolkit's folders of these names; conda and NVIDIA's packages sort them by
    target.
    """
    places: Sequence[Path] = [root / name for name in names]
    targets = [path for name in names for path in sorted(root.glob(f"targets/*/{name}"))]
    debian = sorted(root.glob("lib/*-linux-gnu")) if "lib" in names else []
    return tuple(path for path in (*places, *targets, *debian) if path.is_dir())


def _number(header: Path) -> int:
    found = VERSION.search(_text(header))
    return int(found[1]) if found else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cublas_hint(version: str) -> str:
    numbers = version.replace(".", "-")
    for manager, command in (
        ("apt-get", f"sudo apt install libcublas-dev-{numbers}"),
        ("dnf", f"sudo dnf install libcublas-devel-{numbers}"),
    ):
        if shutil.which(manager, path=os.environ.get("PATH")):
            return f"run `{command}`"
    return "install cuBLAS with its headers (conda: libcublas-dev)"
