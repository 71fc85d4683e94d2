"""Quantizing alone, on one core: decant's own against ggml's, by type and instructions.

    python benchmarks/kquants.py [--runs N] [--write]

CPU time of the best of N calls; all of them take turns in one process on the same rows. Every
variant's bytes are compared with ggml's before they are timed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from exporter.llamacpp.toolchain import find_toolchain, host_facts, recipe  # noqa: E402
from exporter.quantize.kquants import CHUNK_ARGUMENTS, SEARCHED, TYPES, quantized, ways  # noqa: E402
from exporter.quantize.quantizer import Quantizer  # noqa: E402

RESULTS = CHECKOUT / "benchmarks" / "kquants.json"
SHAPE = (256, 8192)  # 2 M weights
IQ4 = {"IQ4_NL": 40.0, "IQ4_XS": 40.0}
AVX512 = {"Q4_K": 12.0, "Q5_K": 12.0, "Q6_K": 9.0, "Q4_0": 8.0, **IQ4}
AVX2 = {"Q4_K": 8.0, "Q5_K": 8.0, "Q6_K": 8.0, "Q4_0": 8.0, **IQ4}
LIMITS = {"avx512": AVX512, "avx2": AVX2}  # times ggml, without importance where there is a search


def variants(ggml: Any) -> dict[str, Callable[..., int]]:
    """Every variant that this processor can run, called as ggml_quantize_chunk is."""
    library = ctypes.CDLL(str(recipe("native").build_native(env=os.environ).path))
    library.decant_kquants_variant.restype = ctypes.c_char_p
    names = ["baseline", "avx2", "avx512"]
    best = library.decant_kquants_variant().decode()
    return {name: bound(library, name, ggml) for name in names[: names.index(best) + 1]}


def bound(library: ctypes.CDLL, name: str, ggml: Any) -> Callable[..., int]:
    function = getattr(library, f"decant_kquants_{name}")
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, *CHUNK_ARGUMENTS]
    own = ctypes.cast(ggml, ctypes.c_void_p)
    return lambda *rest: int(function(own, *rest))


def measure(runs: int) -> list[dict[str, Any]]:
    ggml = Quantizer.load(find_toolchain()).library.ggml_quantize_chunk
    libraries = {"ggml": ggml, **variants(ggml)}
    generator = np.random.default_rng(0)
    rows = (0.02 * generator.standard_normal(SHAPE)).astype(np.float32)
    weights = (generator.standard_normal(SHAPE[1]) ** 2).astype(np.float32)
    results = []
    for kind in TYPES:
        for importance in ways(kind, [weights]):
            seconds = dict.fromkeys(libraries, float("inf"))
            want = quantized(ggml, kind, rows, importance)
            for chunk in libraries.values():
                assert np.array_equal(quantized(chunk, kind, rows, importance), want)
            for _ in range(runs):
                for name, chunk in libraries.items():
                    began = time.process_time()
                    quantized(chunk, kind, rows, importance)
                    seconds[name] = min(seconds[name], time.process_time() - began)
            results.append(
                {
                    "type": kind.name,
                    "imatrix": importance is not None,
                    "weights_per_s": {name: rows.size / each for name, each in seconds.items()},
                    "times_ggml": {name: seconds["ggml"] / each for name, each in seconds.items()},
                }
            )
            print(line(results[-1]), flush=True)
    return results


def line(result: dict[str, Any]) -> str:
    title = result["type"] + (", imatrix" if result["imatrix"] else "")
    cells = (
        f"{name} {speed / 1e6:6.1f} M/s ({result['times_ggml'][name]:5.2f} ×)"
        for name, speed in result["weights_per_s"].items()
    )
    return f"{title:15} " + "  ".join(cells)


def missed(results: list[dict[str, Any]]) -> list[str]:
    """What is slower than it is to be; empty when nothing is."""
    return [
        f"{result['type']} on {name}: {result['times_ggml'][name]:.2f} x, to be {limit:g} x"
        for result in results
        for name, limits in LIMITS.items()
        for limit in [limits.get(result["type"], 0.0)]
        if result["imatrix"] == (result["type"] not in SEARCHED)
        if result["times_ggml"].get(name, limit) < limit
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="keep the result beside this file")
    arguments = parser.parse_args()
    machine = f"{host_facts().model}, {os.cpu_count()} cores, {platform.system()}"
    compiler = host_facts().compiler()
    results = measure(arguments.runs)
    print(f"machine: {machine}; {compiler}")
    for what in missed(results):
        print(f"does not hold: {what}")
    if arguments.write:
        kept = {"machine": machine, "compiler": compiler, "shape": SHAPE, "results": results}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    return 1 if missed(results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
