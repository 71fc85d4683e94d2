"""What `-q auto` loses, against llama.cpp's mixtures of the same size and importance matrix.

    .venv/bin/python benchmarks/quality.py [--write]

For each model of benchmarks/quality_models.py: the mean Kullback-Leibler divergence from the model
in 16 bits, on a text that was not used for calibration, as llama-perplexity measures it; and the
time that the choice takes beside the export.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.marked_part import write_part  # noqa: E402
from benchmarks.quality_models import models, texts  # noqa: E402
from exporter.core.events import Event, Step  # noqa: E402
from exporter.core.ggml_types import AUTO  # noqa: E402
from exporter.core.gguf import read_gguf  # noqa: E402
from exporter.core.machine import cores  # noqa: E402
from exporter.export import count, export  # noqa: E402
from exporter.formats.export_request import ExportRequest  # noqa: E402
from exporter.llamacpp.toolchain import (  # noqa: E402
    Toolchain,
    find_toolchain,
    host_facts,
    run_tool,
)
from exporter.quantize.imatrix import read_imatrix  # noqa: E402
from exporter.quantize.size_budget import SizeBudget  # noqa: E402
from exporter.quantize.type_recipe import Recipe  # noqa: E402

RESULTS = Path(__file__).with_suffix(".json")
DOCUMENT = CHECKOUT / "docs" / "quality.md"
MARKS = (
    "<!-- quality: written by benchmarks/quality.py --write -->\n",
    "<!-- end of quality -->\n",
)
STOCK = {"Q4_K_M": 0.70, "Q3_K_M": 0.60}
"""Mixtures and the ratio of divergences that is asked for at their size."""
CONTEXT, CALIBRATED, JUDGED = 512, 40, 8  # tokens, and chunks of so many
DIVERGENCE = re.compile(r"Mean\s+KLD:\s+([\d.]+)\s+±\s+([\d.]+)")
SAME_TOP = re.compile(r"Same top p:\s+([\d.]+)")
TRIES = 5  # llama-perplexity's last lines may be missing: its log's thread is cut off
SURE = 1.96  # standard errors of a 95 % interval


class Judge:
    """One model in 16 bits, with its importance matrix and its logits on the held-out text."""

    def __init__(self, base: Path, folder: Path, toolchain: Toolchain) -> None:
        """Write both into `folder`."""
        self.base, self.folder, self.toolchain = base, folder, toolchain
        self.calibration, self.text = texts(folder)
        whole, matrix = folder / "F16.gguf", folder / "imatrix.gguf"
        self.logits = folder / "logits"
        self.export("F16", whole, Recipe())
        self.run("llama-imatrix", whole, self.calibration, CALIBRATED, "-o", str(matrix))
        self.recipe = Recipe(imatrix=read_imatrix(matrix))
        logits = "--kl-divergence-base", str(self.logits)
        self.run("llama-perplexity", whole, self.text, JUDGED, *logits)
        whole.unlink()

    def run(self, tool: str, model: Path, text: Path, chunks: int, *options: str) -> str:
        arguments = ["-m", str(model), "-f", str(text), "-c", str(CONTEXT), "-t", str(cores())]
        return run_tool(self.toolchain, tool, [*arguments, "--chunks", str(chunks), *options])

    def export(self, quant: str, path: Path, recipe: Recipe) -> tuple[float, float]:
        """Write one file. Returns the seconds it took, and those of choosing its types."""
        steps: list[tuple[float, str]] = []

        def report(event: Event) -> None:
            if isinstance(event, Step):
                steps.append((time.monotonic(), event.message))

        began = time.monotonic()
        request = ExportRequest((), self.base, (quant,), (path,), recipe=recipe)
        export(request, self.toolchain, report=report)
        chosen = [
            after - before
            for (before, message), (after, _) in itertools.pairwise(steps)
            if message == "choosing types"
        ]
        return time.monotonic() - began, sum(chosen)

    def judge(self, path: Path) -> dict[str, float]:
        """The divergence of a file with its 95 % interval, and the share of equal top tokens."""
        options = "--kl-divergence-base", str(self.logits), "--kl-divergence"
        printed, mean, top = "", None, None
        for _ in range(TRIES):
            printed = self.run("llama-perplexity", path, self.text, JUDGED, *options)
            mean, top = DIVERGENCE.search(printed), SAME_TOP.search(printed)
            if mean and top:
                break
        if mean is None or top is None:
            raise SystemExit(f"llama-perplexity printed no divergence of {path}:\n{printed[-500:]}")
        return {
            "kl": float(mean[1]),
            "interval": SURE * float(mean[2]),
            "same_top_percent": float(top[1]),
        }


def compare(base: Path, toolchain: Toolchain) -> dict[str, object]:
    """One model's figures at the size of each stock mixture."""
    found: dict[str, object] = {}
    folder = Path(tempfile.mkdtemp(prefix="decant-quality-"))
    try:
        judge = Judge(base, folder, toolchain)
        for quant, limit in STOCK.items():
            stock, chosen = folder / f"{quant}.gguf", folder / "auto.gguf"
            plain_s, _ = judge.export(quant, stock, judge.recipe)
            budget = SizeBudget(nbytes=stock.stat().st_size)
            auto_s, choosing_s = judge.export(AUTO, chosen, replace(judge.recipe, budget=budget))
            ours, theirs = judge.judge(chosen), judge.judge(stock)
            found[quant] = {
                "ratio": round(ours["kl"] / theirs["kl"], 3),
                "asked": limit,
                "auto": ours,
                "stock": theirs,
                "nbytes": [chosen.stat().st_size, stock.stat().st_size],
                "types": count(tensor.type for tensor in read_gguf(chosen).tensors),
                "choosing_s": round(choosing_s, 2),
                "export_s": round(plain_s, 2),
                "choosing_ratio": round(choosing_s / (auto_s - choosing_s), 2),
            }
            chosen.unlink()
            stock.unlink()
    finally:
        shutil.rmtree(folder)
    return found


def table(figures: Mapping[str, Any]) -> str:
    """The figures for docs/quality.md."""
    lines = [
        "| model | size of | stock | `-q auto` | ratio | asked | choosing, of the export's time |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, sizes in figures.items():
        for quant, row in sizes.items() if model != "machine" else ():
            stock, auto = (
                f"{row[k]['kl']:.5f} ± {row[k]['interval']:.5f}" for k in ("stock", "auto")
            )
            lines.append(
                f"| {model} | {quant} | {stock} | {auto} | **{row['ratio']:.2f}**"
                f" | {row['asked']:.2f} | {row['choosing_ratio']:.2f} |"
            )
    machine = figures["machine"]
    return "\n".join(lines) + f"\n\n{machine['cpu']}, {machine['cores']} cores.\n"


def main() -> None:
    """Measure, print and perhaps keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="keep the figures in quality.json")
    options = parser.parse_args()
    toolchain = find_toolchain()
    figures: dict[str, Any] = {}
    for name, base in models(toolchain).items():
        figures[name] = compare(base(), toolchain)
        print(f"{name}: {json.dumps(figures[name])}", flush=True)
    host = host_facts()
    figures["machine"] = {"cpu": host.model, "features": host.features, "cores": cores()}
    text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    print(text)
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")
        write_part(DOCUMENT, MARKS, table(figures))


if __name__ == "__main__":
    main()
