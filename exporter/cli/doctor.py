"""The command `decant doctor`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

import click

from exporter.cli.app import colours
from exporter.cli.common_options import json_option, offline_option, store
from exporter.cli.terminal_renderer import print_json
from exporter.core.atomic_file import free_bytes
from exporter.core.errors import DecantError
from exporter.core.machine import cores, memory_nbytes
from exporter.core.paths import size_text
from exporter.llamacpp.gpus import WITH_GPU, driver_gpus, listed_gpus
from exporter.llamacpp.toolchain import cache_folder, find_toolchain, host_facts, run_tool
from exporter.quantize.quantizer import Quantizer

MEMORY_MIN = 4_000_000_000  # bytes; a 3 B model in 4 bits with its context
DISK_MIN = 5_000_000_000  # bytes; a build and one small model
EXPORT_PACKAGES = ("torch", "transformers", "peft", "safetensors", "sentencepiece")
MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    status: Literal["ok", "warning", "error"]
    found: str
    advice: str = ""
    """Advice about a problem; empty if all is well."""


@click.command(epilog="Example: decant doctor --json")
@offline_option
@json_option
def doctor(as_json: bool) -> int:
    """Check this machine and say what to do about each red line.

    Exits with 4 if something is missing that decant cannot work without.
    """
    checks = list(examine())
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            print_check(check)
    return 4 if any(check.status == "error" for check in checks) else 0


def print_check(check: Finding) -> None:
    mark, colour = MARKS[check.status]
    terminal = colours(sys.stdout.isatty())
    click.echo(f"{click.style(mark, fg=colour)} {check.name}: {check.found}", color=terminal)
    if check.advice:
        click.echo(f"    {check.advice}", color=terminal)


def examine() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} in `{sys.prefix}`")
    yield processor()
    yield compiler()
    yield build()
    yield from gpu()
    yield from kquants()
    yield packages()
    yield memory()
    yield from endpoints()
    for name, folder in (("cache", cache_folder()), ("store", store())):
        free = free_bytes(folder)
        low = free < DISK_MIN
        yield Finding(
            name,
            "warning" if low else "ok",
            f"`{folder}`, {size_text(free)} free",
            f"models need room: set DECANT_{name.upper()} to a folder on a larger disk"
            if low
            else "",
        )


def processor() -> Finding:
    facts = host_facts()
    return Finding("processor", "ok", f"{facts.model}, {cores()} cores; {facts.features}")


def compiler() -> Finding:
    try:
        return Finding("compiler", "ok", host_facts().compiler())
    except DecantError as error:
        return Finding("compiler", "warning", error.message, error.hint or "")


def build() -> Finding:
    try:
        toolchain = find_toolchain()
        run_tool(toolchain, "llama-quantize", ["--help"], good=(0, 1))
    except DecantError as error:
        return Finding("llama.cpp", "error", error.message, error.hint or "")
    info = toolchain.info
    return Finding(
        "llama.cpp",
        "ok",
        f"{info['commit']}, backend {info['backend']}, AMX {info['amx']['verdict']},"
        f" in `{toolchain.folder}`",
    )


def gpu() -> Iterator[Finding]:
    """The GPUs that llama.cpp uses; empty without any."""
    try:
        toolchain = find_toolchain()
        found = listed_gpus(toolchain)
    except DecantError:
        return
    backend = toolchain.info["backend"]
    for one in found:
        room = f"{size_text(one.free)} of {size_text(one.total)} free"
        yield Finding("GPU", "ok", f"{one.name}, {room}, used by {backend}")
    if found:
        return
    if backend in WITH_GPU:
        yield Finding(
            "GPU",
            "warning",
            f"llama.cpp is built for {backend}, but sees no GPU: the processor computes all",
            "does the driver work (nvidia-smi), and is CUDA_VISIBLE_DEVICES empty?",
        )
    elif names := driver_gpus():
        yield Finding(
            "GPU",
            "warning",
            f"{', '.join(names)}, which llama.cpp does not use: it is built for the processor",
            "install the CUDA toolkit with nvcc, and run `decant setup`",
        )


def kquants() -> Iterator[Finding]:
    """Whether the fast quantization is available; empty without a build."""
    try:
        kernels = Quantizer.load(find_toolchain()).kernels
    except DecantError:
        return
    slow = kernels.chunk is None or bool(kernels.refused)
    yield Finding("K-quants", "warning" if slow else "ok", kernels.describe())


def packages() -> Finding:
    missing = [name for name in EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        return Finding(
            "export",
            "warning",
            f"{', '.join(missing)} not installed: chat works, export does not",
            "pip install 'decant-llm[export]'",
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in EXPORT_PACKAGES)
    return Finding("export", "ok", versions)


def memory() -> Finding:
    total = memory_nbytes()
    small = total < MEMORY_MIN
    return Finding(
        "memory",
        "warning" if small else "ok",
        f"{size_text(total)}",
        "models of up to about 1 B parameters will fit" if small else "",
    )


def endpoints() -> Iterator[Finding]:
    """The endpoints that serve models, in the order of use."""
    from huggingface_hub import is_offline_mode

    from exporter.hub.endpoints import endpoints_from
    from exporter.hub.reachability import reach

    try:
        listed = endpoints_from((), os.environ)
    except DecantError as error:
        yield Finding("endpoint", "warning", f"{error.message} (HF_ENDPOINT)", error.hint or "")
        return
    if is_offline_mode():
        names = ", ".join(endpoint.name for endpoint in listed)
        yield Finding("endpoint", "ok", f"{names}: not asked, since decant is offline")
        return
    for reached in map(reach, listed):
        name = reached.endpoint.name
        if reached.problem:
            yield Finding("endpoint", "warning", f"{name} {reached.problem}", endpoint_advice(name))
        else:
            yield Finding("endpoint", "ok", f"{name} answers in {reached.seconds:.2f} s")


def endpoint_advice(name: str) -> str:
    mirror = "" if name.endswith("hf-mirror.com") else "https://hf-mirror.com,"
    return (
        "check the network, its login page and HTTPS_PROXY; or list others:"
        f" export HF_ENDPOINT={mirror}https://huggingface.co"
    )
