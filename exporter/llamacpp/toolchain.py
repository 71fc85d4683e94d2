"""Finds the build of llama.cpp, runs its tools and names its libraries."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter.core.errors import ToolchainError
from exporter.core.events import Note, Progress, Report, Step, Unit, silent

LAST_LINES = 20  # of a tool's output, in an error's message
KEPT_VARIABLES = (
    "PATH", "HOME", "TMPDIR", "LANG", "LC_", "TZ", "LD_LIBRARY_PATH", "DYLD_",
    "CUDA_", "NVIDIA_", "VK_", "GGML_", "OMP_", "GOMP_",
)  # fmt: skip


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of tools that compute nothing on a GPU, or must be exact: CUDA's float32 products are
TF32, and looking for a GPU takes a third of a second and half a gigabyte of its memory.
"""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A finished build of llama.cpp."""

    build: Any  # vendor.build.Build; the recipe lies in one of two places, so it is untyped

    @property
    def folder(self) -> Path:
        path: Path = self.build.dir
        return path

    def tool(self, name: str) -> Path:
        """The path of an executable, such as llama-quantize."""
        path: Path = self.build.tool(name)
        return path

    def library(self, name: str) -> Path:
        """The path of a shared library, such as ggml-base."""
        path: Path = self.build.library(name)
        return path

    @property
    def source(self) -> Path:
        """The folder that holds llama.cpp's `conversion` and `gguf-py`."""
        path: Path = self.build.src
        return path

    @property
    def info(self) -> dict[str, Any]:
        """The contents of build.json."""
        info: dict[str, Any] = self.build.info
        return info


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The processor, as `decant doctor` shows it."""

    model: str
    features: str
    host: Any  # vendor.host.Host

    def compiler(self) -> str:
        """The C++ compiler's version.

        Raises ToolchainError, with a package to install, if there is no compiler.
        """
        with translated():
            version: str = (
                recipe("host").find_compilers(os.environ, system=self.host.system).version
            )
        return version


def recipe(module: str = "build") -> ModuleType:
    """A module of the build's code, from the wheel (`exporter._vendor`) or the checkout.

    Raises ToolchainError when neither has it.
    """
    if importlib.util.find_spec("exporter._vendor"):
        return importlib.import_module(f"exporter._vendor.{module}")
    checkout = Path(__file__).parents[2]
    if not (checkout / "vendor" / "build.py").exists():
        raise ToolchainError(
            "this installation carries no recipe for llama.cpp", hint="install decant-llm again"
        )
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    return importlib.import_module(f"vendor.{module}")


def find_toolchain() -> Toolchain:
    """The finished build for this machine. Raises ToolchainError when there is none."""
    building = recipe()
    with translated():
        build = building.find(building.read_recipe(), env=os.environ)
    if build is None:
        raise ToolchainError(
            "llama.cpp has not been built on this machine yet",
            hint=f"run `decant setup`: it takes {setup_time()}",
        )
    return Toolchain(build)


def setup_time() -> str:
    """How long a build takes on this machine, as text. Raises ToolchainError."""
    host = recipe("host")
    with translated():
        facts = host.read_host(os.environ)
        backend = host.choose_backend(recipe().read_recipe(), os.environ, facts).backend
    return str(host.expected_time(backend, facts.cuda, host.count_jobs(os.environ)))


def build_toolchain(*, force: bool = False, report: Report = silent) -> Toolchain:
    """The finished build for this machine, built first if missing. Raises ToolchainError."""
    building = recipe()
    seen: set[str] = set()

    def tell(event: Any) -> None:  # vendor.report.BuildEvent
        if event.stage not in seen:
            seen.add(event.stage)
            report(Step(event.message) if event.total else Note(event.message))
        elif not event.total:
            report(Note(event.message))
        if event.total:
            unit: Unit = "steps" if event.stage == "compile" else "bytes"
            report(Progress(event.stage, event.done, event.total, unit))

    with translated():
        return Toolchain(
            building.build(building.read_recipe(), env=os.environ, report=tell, force=force)
        )


@contextmanager
def translated() -> Iterator[None]:
    """Turn the recipe's BuildError, and a cache that cannot be written, into ToolchainError."""
    build_error = recipe("report").BuildError
    try:
        yield
    except build_error as error:
        raise ToolchainError(error.message, hint=error.hint or None) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise ToolchainError(
            f"cannot write `{error.filename}`: {error.strerror}",
            hint="name a cache folder that you may write to: export DECANT_CACHE=FOLDER",
        ) from error


def cache_folder() -> Path:
    """The user's cache of builds and demo models, which can be made again."""
    folder: Path = recipe().cache_root(os.environ)
    return folder


def host_facts() -> HostFacts:
    host = recipe("host").read_host(os.environ)
    notable = ("avx512f", "avx2", "avx", "amx_tile", "f16c", "fma", "asimd", "sve", "i8mm")
    flags = [flag for flag in notable if flag in host.cpu.flags]
    return HostFacts(host.cpu.model or host.cpu.machine, " ".join(flags) or host.cpu.machine, host)


def run_tool(
    toolchain: Toolchain,
    name: str,
    arguments: Sequence[str],
    *,
    good: Sequence[int] = (0,),
    gpu: bool = False,
) -> str:
    """Run one of llama.cpp's tools to its end and return its output.

    gpu: whether it may look for GPUs. good: exit codes that count as success. Raises ToolchainError
    with the command and its last lines for any other.
    """
    argv = [str(toolchain.tool(name)), *arguments]
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=scrubbed(os.environ) | ({} if gpu else NO_GPU),
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode not in good:
        tail = "\n".join(done.stdout.splitlines()[-LAST_LINES:])
        raise ToolchainError(
            f"`{' '.join(argv)}` ended with {done.returncode}:\n{tail}",
            hint="if this happens again, rebuild llama.cpp with `decant setup --force`",
        )
    return done.stdout


def follow_tool(
    toolchain: Toolchain, name: str, arguments: Sequence[str], on_output: Callable[[str], None]
) -> str:
    """Run a tool and call `on_output` with its whole output so far whenever it prints.

    The tool may use the GPU. An exception in `on_output` kills it. Raises ToolchainError, with the
    tool's last lines, when it fails.
    """
    argv = [str(toolchain.tool(name)), *arguments]
    printed = ""
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=scrubbed(os.environ),
    ) as running:
        assert running.stdout is not None
        try:
            while block := os.read(running.stdout.fileno(), 1 << 16):
                printed += block.decode(errors="replace")
                on_output(printed)
        except BaseException:  # Ctrl-C too
            running.kill()
            raise
    if running.returncode:
        tail = "\n".join(printed.splitlines()[-LAST_LINES:])
        raise ToolchainError(
            f"`{' '.join(argv)}` ended with {running.returncode}:\n{tail}",
            hint="if this happens again, rebuild llama.cpp with `decant setup --force`",
        )
    return printed


def scrubbed(env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which llama.cpp's tools follow only their arguments.

    Every flag of llama-server also has a variable: a stray LLAMA_ARG_TOOLS=all opens a shell.
    """
    return {name: value for name, value in env.items() if name.startswith(KEPT_VARIABLES)}


@contextmanager
def without_gpus() -> Iterator[None]:
    """Hide GPUs from the libraries that the block loads, for as long as they stay loaded."""
    before = {name: os.environ.get(name) for name in NO_GPU}
    os.environ.update(NO_GPU)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
