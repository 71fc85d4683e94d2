"""`decant serve` under clients that behave badly: nothing may leak, and nobody pays for another.

    python benchmarks/soak.py [--minutes 30] [--write]
    python benchmarks/soak.py --hostile [--minutes 30] [--phase-s 60] [--only KIND] [--write]

Eight clients: random disconnects, bad requests, three voices over one base, and an engine killed
now and then. An answer counts as lost only if no kill can explain it.

With --hostile, seven clients, no kills, and in every other phase one client more, which sends what
once took the server from all others (`tests/support/hostile_client.py`). None of the seven may
lose an answer or get a wrong one, and their p99 beside it may be three times that without.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
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
from tests.support.hostile_client import Hostile  # noqa: E402
from tests.support.soak_clients import Soak  # noqa: E402
from tests.support.soak_phases import Phases, percentile  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "soak.json"
HOSTILE = CHECKOUT / "benchmarks" / "soak_hostile.json"
MODELS = ("base", "base:pirate", "base:liar")
KILL_EVERY_S = 20
MIB = 1 << 20
RATIO_MAX = 3  # of the p99 beside an attack to that without
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/")
    parser.add_argument("--hostile", action="store_true", help="beside one client that attacks")
    parser.add_argument("--phase-s", type=float, default=60, help="seconds with, and without it")
    parser.add_argument("--only", default="", metavar="KIND", help="the one thing that it sends")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder, *make(folder), "--parallel", 4) as served:
            expected = {(m, p): served.says(m, p) for m in MODELS for p in PROMPTS}
            soak = Soak(served, expected, 7 if asked.hostile else 8, are_apart=asked.hostile)
            soak.run(20, kill_every_s=9)  # what is allocated once is
            soak.forget()
            seconds = asked.minutes * 60
            if asked.hostile:
                found, is_bad = beside_attacks(soak, seconds, asked.phase_s, asked.only)
            else:
                found, is_bad = with_kills(soak, seconds)
    results = {
        "machine": f"{host_facts().model}, {platform.system()}",
        "minutes": asked.minutes,
        "clients": soak.clients,
        "answers": dict(soak.answers),
        "wrong_or_lost": len(soak.wrong),
        "before": soak.first,
        "after": soak.last,
        **found,
    }
    print(json.dumps(results, indent=2))
    for one in soak.wrong[:20]:
        print(one, file=sys.stderr)
    if asked.write:
        (HOSTILE if asked.hostile else RESULTS).write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(bool(soak.wrong or is_bad))


def with_kills(soak: Soak, seconds: float) -> tuple[dict[str, object], bool]:
    """What there is to say of a soak in which engines are killed, and whether anything leaks."""
    soak.run(seconds, kill_every_s=KILL_EVERY_S)
    found = {
        "kills": soak.kills,
        "most": {key: max(s[key] for s in (soak.last, *soak.samples)) for key in soak.first},
        "rss_at_kills": [sample["rss"] for sample in soak.samples],
    }
    return found, leaks(soak, engines=2, grown=4 * MIB)


def beside_attacks(
    soak: Soak, seconds: float, phase_s: float, only: str
) -> tuple[dict[str, object], bool]:
    """The same of one in phases, and whether anybody waited for the hostile client."""
    hostile, phases = Hostile(soak.served.port, only), Phases()
    phases.run(soak, hostile, seconds, phase_s)
    quiet, beside = phases.quiet(soak.took), phases.beside(soak.took)
    times = {
        f"p{100 * part:g}_s": {
            "without": round(percentile(quiet, part), 3),
            "beside": round(percentile(beside, part), 3),
        }
        for part in (0.5, 0.99)
    }
    ratio = percentile(beside, 0.99) / percentile(quiet, 0.99)
    restarts = soak.served.metric("decant_child_restarts_total")
    found = {
        "attacks": len(phases.attacks),
        "hostile": dict(sorted(hostile.done.items())),
        "told": dict(sorted(hostile.statuses.items())),
        "restarts": restarts,
        **times,
        "p99_ratio": round(ratio, 2),
    }
    is_bad = ratio > RATIO_MAX or bool(hostile.faults)
    return found, is_bad or leaks(soak, engines=2 + SCALES, grown=150 * MIB)


def leaks(soak: Soak, *, engines: int, grown: int) -> bool:
    """Whether files, engines or bytes are left; grown: bytes that may be."""
    files = soak.last["fds"] > soak.first["fds"] + 8 * engines
    is_larger = soak.last["rss"] > soak.first["rss"] + grown
    return files or is_larger or soak.last["children"] > engines


if __name__ == "__main__":
    main()
