"""`decant worker`."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import click

from exporter.cli.options import quiet_option
from exporter.cli.render import Lines, warnings_only
from exporter.core.events import Report, Warn
from exporter.core.folders import size_text
from exporter.core.machine import physical_cores
from exporter.toolchain import cache_folder, find_toolchain
from runtime.network import is_loopback
from runtime.rpc import DEFAULT_PORT
from runtime.rpc_server import LOOPBACK, RpcSpec
from runtime.worker import Worker, WorkerSpec

RISK = (
    "the RPC protocol has no key and no encryption: whoever reaches {} can read what is computed"
    " here, and may take over this account"
)


@click.command(epilog="Example: decant worker --port 50052")
@click.option("--host", default=LOOPBACK, show_default=True, help="Where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True,
    help="0 takes any.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 256), help="Threads; default: one a physical core."
)
@click.option("--cache", is_flag=True, help="Keep weights on this disk: they are sent once.")
@click.option("--i-know", is_flag=True, help="Listen where other machines reach it, unprotected.")
@quiet_option
def worker(
    host: str, port: int, threads: int | None, cache: bool, i_know: bool, quiet: bool
) -> None:
    """Compute layers of a model that `decant serve --rpc` runs on another machine.

    It listens on the loopback, for a tunnel to end at. Both machines need the same decant.
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
        return  # that is how one ends it


def kept_weights() -> Path:
    """Where ggml-rpc-server makes its folder `rpc`."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tell(running: Worker, report: Report, *, quiet: bool) -> None:
    """Say what for, at what risk, and last, on stdout, where it listens."""
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
