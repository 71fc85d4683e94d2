"""The command `decant worker`: computes layers of another machine's model."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import click

from exporter.cli.common_options import quiet_option
from exporter.cli.terminal_renderer import Lines, warnings_only
from exporter.core.events import Report, Warn
from exporter.core.machine import physical_cores
from exporter.core.paths import size_text
from exporter.llamacpp.toolchain import cache_folder, find_toolchain
from runtime.process.network import is_loopback
from runtime.rpc.protocol import DEFAULT_PORT
from runtime.rpc.rpc_server import LOOPBACK, RpcSpec
from runtime.rpc.worker import Worker, WorkerSpec

RISK = (
    "the RPC protocol has no key and no encryption: anyone who reaches {} can read the data"
    " computed here, and may take over this account"
)


@click.command(epilog="Example: decant worker --port 50052")
@click.option("--host", default=LOOPBACK, show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True,
    help="The port to listen on; 0 takes a free one.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Threads; default: one per physical core."
)
@click.option("--cache", is_flag=True, help="Keep weights on this disk, to receive them once.")
@click.option("--i-know", is_flag=True, help="Listen, unprotected, where other machines reach it.")
@quiet_option
def worker(
    host: str, port: int, threads: int | None, cache: bool, i_know: bool, quiet: bool
) -> None:
    """Compute layers of a model that `decant serve --rpc` runs on another machine.

    It listens on the loopback, where a tunnel ends. Both machines need the same decant.
    """
    toolchain = find_toolchain()
    rpc = RpcSpec(threads or physical_cores(), kept_weights() if cache else None)
    spec = WorkerSpec(host, port, rpc, exposed=i_know)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = warnings_only if quiet else Lines().report
    try:
        with Worker(spec, toolchain, report=report) as running:
            tell(running, report, quiet=quiet)
            threading.Event().wait()
    except KeyboardInterrupt:
        return  # the usual way to end a worker


def kept_weights() -> Path:
    """The folder in which ggml-rpc-server creates `rpc`."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tell(running: Worker, report: Report, *, quiet: bool) -> None:
    """Print the purpose and the risk and last, on stdout, the address."""
    host, port = running.spec.host, running.port
    if not is_loopback(host):
        report(Warn(RISK.format(f"{host}:{port}")))
    if not quiet:
        info, free = running.toolchain.info, running.free
        click.echo(
            f"llama.cpp {info['commit']} ({info['backend']}), {running.spec.rpc.threads} threads,"
            f" {size_text(sum(free))} of memory free\n"
            "on the machine that serves:\n"
            f"  ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}\n"
            f"  decant serve MODEL --rpc 127.0.0.1:{port}\n"
            f"{RISK.format('this port')}",
            err=True,
        )
    click.echo(f"{host}:{port}")
