"""The command `decant setup`."""

from __future__ import annotations

import click

from exporter.cli.common_options import json_option, quiet_option
from exporter.cli.terminal_renderer import print_json, print_pairs, reporting
from exporter.llamacpp.toolchain import Toolchain, build_toolchain
from exporter.quantize.quantizer import Quantizer


@click.command(epilog="Example: decant setup --force")
@click.option("--force", is_flag=True, help="Build again even if the build is there.")
@json_option
@quiet_option
def setup(force: bool, as_json: bool, quiet: bool) -> None:
    """Build the pinned llama.cpp, once, or find it built.

    This takes 5 to 10 minutes on 2 to 4 cores, and with CUDA about 20 on 4; the first lines say how
    long it takes on this machine.
    """
    with reporting(quiet=quiet) as report:
        toolchain = build_toolchain(force=force, report=report)
        kernels = Quantizer.load(toolchain, report=report).kernels
    if as_json:
        print_json({"dir": str(toolchain.folder), **toolchain.info, "kquants": kernels.describe()})
    else:
        print_pairs(summary(toolchain) | {"K-quants": kernels.describe()})


def summary(toolchain: Toolchain) -> dict[str, object]:
    info = toolchain.info
    return {
        "llama.cpp": f"{info['commit']} (llama-cpp-python {info['llama_cpp_python']})",
        "patches": ", ".join(info["mends"]),
        "backend": f"{info['backend']} ({info['backend_reason']})",
        "compiler": info["compiler"]["version"],
        "AMX": info["amx"]["verdict"],
        "smoke test": f"{len(info['smoke']['tokens'])} tokens decoded",
        "tools": ", ".join(sorted(info["tools"])),
        "folder": toolchain.folder,
    }
