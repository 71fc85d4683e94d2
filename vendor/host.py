"""Describes this machine: CPU, GPU, compilers, and the backend to build for it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .cuda import EVERY, NO_CUDA, Cuda, read_cuda
from .recipe import Recipe
from .report import BuildError

CPUINFO = Path("/proc/cpuinfo")
# One of these exists when an NVIDIA driver is loaded: Linux, Linux, WSL.
NVIDIA_DRIVER = (
    Path("/dev/nvidiactl"),
    Path("/proc/driver/nvidia/version"),
    Path("/usr/lib/wsl/lib/libcuda.so.1"),
)
# The CPU flags that select a native build's instructions; other flags vary with the kernel.
INSTRUCTIONS = re.compile(
    r"(sse|ssse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|sha|vaes|vpclmul|gfni"  # x86
    r"|fp|asimd|sve|sme|i8mm|bf16|crc32|atomics|dotprod).*"  # Arm
)


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor that a native build is for."""

    machine: str
    """`platform.machine()`: x86_64, aarch64, arm64."""
    model: str
    """The brand name; empty if the system does not report it."""
    flags: frozenset[str]
    """Instruction sets; empty if the system does not list them."""

    @property
    def identity(self) -> list[str]:
        """The parts of a build's key: the machine and its instruction sets, or else the brand."""
        wanted = sorted(flag for flag in self.flags if INSTRUCTIONS.fullmatch(flag))
        return [self.machine, *(wanted or [self.model])]


@dataclass(frozen=True, slots=True)
class Host:
    """The facts about a machine that a build depends on."""

    system: str
    """`platform.system()`: Linux, Darwin."""
    cpu: Cpu
    nvidia: bool
    """Whether an NVIDIA driver is loaded."""
    nvcc: str | None = None
    """The path of CUDA's compiler."""
    cuda: Cuda = NO_CUDA
    """The toolkit and GPUs for a CUDA build."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend and the reason to use it."""

    backend: str
    reason: str


@dataclass(frozen=True, slots=True)
class Compilers:
    """A C and a C++ compiler, each as a command line like CC and CXX."""

    cc: str
    cxx: str
    version: str
    """The first line of the C++ compiler's `--version`."""
    path: str
    """The path of the C++ compiler's program."""


def read_host(env: Mapping[str, str]) -> Host:
    """Return the facts about this machine; takes about a millisecond."""
    nvidia = any(path.exists() for path in NVIDIA_DRIVER)
    nvcc = find_nvcc(env)
    return Host(platform.system(), read_cpu(), nvidia, nvcc, read_cuda(env, nvcc))


def read_cpu(cpuinfo: Path = CPUINFO) -> Cpu:
    """Return the first processor in `cpuinfo`, or the platform's data if there is no such file."""
    fields: dict[str, str] = {}
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.strip():
                    break
                name, _, value = line.partition(":")
                fields.setdefault(name.strip(), value.strip())
    except OSError:
        return Cpu(platform.machine(), _brand(), frozenset())
    model = fields.get("model name") or " ".join(
        fields[name] for name in ("CPU implementer", "CPU part") if name in fields
    )
    flags = fields.get("flags") or fields.get("Features") or ""
    return Cpu(platform.machine(), model or _brand(), frozenset(flags.split()))


def _brand() -> str:
    """Return the processor's brand on a system without /proc."""
    argv = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return platform.processor()
    return answer.stdout.strip()


def choose_backend(recipe: Recipe, env: Mapping[str, str], host: Host) -> BackendChoice:
    """Return the backend to build: DECANT_BACKEND, or the one that suits the machine.

    Raises BuildError for an unknown DECANT_BACKEND.
    """
    setting = env.get("DECANT_BACKEND", "auto").strip().lower() or "auto"
    if setting in recipe.backends:
        return BackendChoice(setting, f"DECANT_BACKEND={setting}")
    if setting != "auto":
        raise BuildError(
            f"DECANT_BACKEND is {setting!r}, which is no backend",
            hint=f"use one of: auto, {', '.join(sorted(recipe.backends))}",
        )
    if host.system == "Darwin":
        return BackendChoice("metal", "macOS")
    if host.nvcc and host.nvidia:
        return BackendChoice("cuda", f"an NVIDIA GPU and `{host.nvcc}` are here")
    if host.nvcc:
        return BackendChoice(
            "cpu", f"`{host.nvcc}` is here but no NVIDIA GPU; DECANT_BACKEND=cuda insists"
        )
    if host.nvidia:
        return BackendChoice(
            "cpu", "an NVIDIA GPU is here but no nvcc: the CUDA toolkit would use it"
        )
    return BackendChoice("cpu", "no GPU toolkit found; DECANT_BACKEND=vulkan asks for Vulkan")


def find_nvcc(env: Mapping[str, str]) -> str | None:
    """Return the path of nvcc: CUDACXX, on PATH, in CUDA_HOME or CUDA_PATH, or in NVIDIA's
    folder.
    """
    if named := env.get("CUDACXX"):
        return shutil.which(named, path=env.get("PATH")) or named
    homes = [env[name] for name in ("CUDA_HOME", "CUDA_PATH") if env.get(name)]
    path = env.get("PATH", "").split(os.pathsep)
    folders = [*path, *(f"{home}/bin" for home in homes), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(filter(None, folders)))


def find_compilers(env: Mapping[str, str], *, system: str) -> Compilers:
    """Return the compilers that CC and CXX name, or the first pair on PATH that runs.

    Raises BuildError if none runs.
    """
    if env.get("CC") or env.get("CXX"):
        pairs: Iterable[tuple[str, str]] = [(env.get("CC") or "cc", env.get("CXX") or "c++")]
    else:
        pairs = [("cc", "c++"), ("gcc", "g++"), ("clang", "clang++")]
    for cc, cxx in pairs:
        path = _program(cxx, env)
        if path and _first_line(cc, env) and (version := _first_line(cxx, env)):
            return Compilers(cc, cxx, version, path)
    tried = ", ".join(f"`{cc}` and `{cxx}`" for cc, cxx in pairs)
    raise BuildError(
        f"llama.cpp needs a C and a C++ compiler, and none runs here (tried {tried})",
        hint=_install_hint(system),
    )


def _program(command: str, env: Mapping[str, str]) -> str | None:
    """Return the path of the program that `command` starts."""
    return shutil.which(shlex.split(command)[0], path=env.get("PATH", ""))


def _first_line(command: str, env: Mapping[str, str]) -> str:
    """Return the first line of `command --version`, or an empty string if it does not run."""
    path = _program(command, env)
    if path is None:
        return ""
    argv = [path, *shlex.split(command)[1:], "--version"]
    try:
        # On a Mac without the command line tools, /usr/bin/c++ exists and exits with an error.
        answer = subprocess.run(
            argv, env=dict(env), capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (answer.stdout.splitlines() or [Path(path).name])[0]


def _install_hint(system: str) -> str:
    if system == "Darwin":
        return "run `xcode-select --install`"
    for manager, command in (
        ("apt-get", "sudo apt install g++"),
        ("dnf", "sudo dnf install gcc-c++"),
        ("pacman", "sudo pacman -S gcc"),
        ("zypper", "sudo zypper install gcc-c++"),
        ("apk", "sudo apk add g++"),
    ):
        if shutil.which(manager):
            return f"run `{command}`, or name others in CC and CXX"
    return "install g++ or clang++, or name them in CC and CXX"


def count_jobs(env: Mapping[str, str]) -> int:
    """Return how many compilers to run at once: CMAKE_BUILD_PARALLEL_LEVEL, or the usable CPUs."""
    setting = env.get("CMAKE_BUILD_PARALLEL_LEVEL", "")
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Core minutes of a build, from measurements: 10 min on 2 cores; CUDA 4.5 min on 16 cores, 17 min
# on 4. Each CUDA architecture compiles the CUDA sources about six times.
CORE_MINUTES = {"cpu": 20, "metal": 20, "vulkan": 35, "cuda": 70}
CORE_MINUTES_EVERY = 350  # a CUDA build for every architecture


def expected_time(backend: str, cuda: Cuda, jobs: int) -> str:
    """Return a sentence on the duration of a build, for a message."""
    every = backend == "cuda" and cuda.architectures == EVERY
    minutes = (CORE_MINUTES_EVERY if every else CORE_MINUTES.get(backend, 20)) / jobs
    cores = "1 core" if jobs == 1 else f"{jobs} cores"
    return f"about {max(1, round(minutes))} min on {cores}, once"
