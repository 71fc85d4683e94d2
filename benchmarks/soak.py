"""`decant serve` under eight clients that behave badly, for half an hour: nothing may leak.

    python benchmarks/soak.py [--minutes 30] [--hostile] [--write]

With --hostile, seven clients, and one more that sends what once took the server from all others:
their p99 may be three times that of a minute without. No engine is killed then.

Random disconnects, bad requests, three voices over one base, and an engine killed now and then.
An answer counts as lost only if no kill can explain it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from exporter.demo import make_demo_models  # noqa: E402
from exporter.export import export  # noqa: E402
from exporter.formats.export_request import ExportRequest  # noqa: E402
from exporter.formats.gguf_lora import LoraRequest, export_lora  # noqa: E402
from exporter.llamacpp.toolchain import cache_folder, find_toolchain, host_facts  # noqa: E402
from tests.runtime.conftest import PROMPTS, train_liar  # noqa: E402
from tests.runtime.gateway.conftest import serving  # noqa: E402
from tests.support.soak_clients import Soak  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "soak.json"
MODELS = ("base", "base:pirate", "base:liar")
KILL_EVERY_S = 20
MIB = 1 << 20
SCALES = 5  # engines for adapters' scales, and one for vectors


def make(folder: Path) -> tuple[object, ...]:
    """The demo's base and two adapters, as arguments of `decant serve`."""
    toolchain = find_toolchain()
    models = make_demo_models(cache_folder() / "demo")
    base = folder / "base-Q4_K_M.gguf"
    export(ExportRequest((), models.base, ("Q4_K_M",), (base,)), toolchain)
    pirate, liar = folder / "pirate.lora.gguf", folder / "liar.lora.gguf"
    export_lora(LoraRequest(models.adapter, models.base, pirate), toolchain)
    train_liar(folder / "liar", models.base)
    export_lora(LoraRequest(folder / "liar", models.base, liar), toolchain)
    return (base, "--adapter", f"pirate={pirate}", "--adapter", f"liar={liar}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/")
    parser.add_argument("--hostile", action="store_true", help="beside one client that attacks")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder, *make(folder), "--parallel", 4) as served:
            expected = {(m, p): served.says(m, p) for m in MODELS for p in PROMPTS}
            soak = Soak(served, expected, clients=7 if asked.hostile else 8)
            soak.run(20, kill_every_s=9)  # what is allocated once is
            quiet_s = quiet(soak) if asked.hostile else 0.0
            soak.answers.clear()
            soak.took.clear()
            soak.is_hostile = asked.hostile
            began = time.monotonic()
            every_s = asked.minutes * 60 if asked.hostile else KILL_EVERY_S
            soak.run(asked.minutes * 60, kill_every_s=every_s)
            took = time.monotonic() - began
    results = {
        "machine": f"{host_facts().model}, {platform.system()}",
        "minutes": round(took / 60, 1),
        "clients": soak.clients,
        "kills": soak.kills,
        "answers": dict(soak.answers),
        "wrong_or_lost": len(soak.wrong),
        "p99_s": round(soak.slowest(), 3),
        "p99_quiet_s": round(quiet_s, 3),
        "before": soak.first,
        "after": soak.last,
        "most": {key: max(s[key] for s in (soak.last, *soak.samples)) for key in soak.first},
        "rss_at_kills": [sample["rss"] for sample in soak.samples],
    }
    print(json.dumps(results, indent=2))
    for one in soak.wrong[:20]:
        print(one, file=sys.stderr)
    if asked.write:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    engines = 2 if not asked.hostile else 2 + SCALES
    leaks = soak.last["fds"] > soak.first["fds"] + 8 * engines or soak.last["children"] > engines
    grown = soak.last["rss"] > soak.first["rss"] + (150 if asked.hostile else 4) * MIB
    slow = asked.hostile and soak.slowest() > 3 * quiet_s
    sys.exit(bool(soak.wrong or leaks or grown or slow))


def quiet(soak: Soak) -> float:
    """The p99 of a minute without an attack."""
    soak.took.clear()
    soak.run(60, kill_every_s=60)
    return soak.slowest()


if __name__ == "__main__":
    main()
