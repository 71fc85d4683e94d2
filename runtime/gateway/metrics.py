"""What is counted, for Prometheus.

`relabelled` and not prometheus_client.parser: that has every counter's name end in _total, so that
llama-server's n_tokens_max would get a name that nobody looks for, and takes as many lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from runtime.gateway.scheduling.engine_entry import Child

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SAMPLE = re.compile(r"^llamacpp:([a-zA-Z_]+)(?:\{[^}]*\})? ([-+.\w]+)$", re.MULTILINE)
TYPE = re.compile(r"^# TYPE llamacpp:([a-zA-Z_]+) (\w+)$", re.MULTILINE)


class Metrics:
    """The gateway's own counters; each gateway has its own."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "decant_requests", "Requests answered.", ["route", "model", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.duration = Histogram(
            "decant_request_seconds", "From the request's head to the answer's end.",
            ["route", "model"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first = Histogram(
            "decant_time_to_first_token_seconds",
            "From the request's head to the first bytes of a streamed answer.",
            ["model"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.wait = Histogram(
            "decant_queue_wait_seconds", "In the queue, of those admitted.", ["model"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.refused = Counter(
            "decant_refused", "Requests refused by their head.", ["status"],
            registry=self.registry,
        )  # fmt: skip
        self.gone = Counter(
            "decant_disconnects", "Clients that left before their answer was complete.",
            ["model"], registry=self.registry,
        )  # fmt: skip
        self.streamed = Counter(
            "decant_stream_bytes", "Bytes of streamed answers.", ["model"], registry=self.registry
        )

    def waited(self, model: str, seconds: float) -> None:
        self.wait.labels(model).observe(seconds)

    def text(self) -> bytes:
        found: bytes = generate_latest(self.registry)
        return found


GAUGES: dict[str, tuple[str, Callable[[Child], float]]] = {
    "decant_queue_depth": ("Requests that wait.", lambda c: len(c.gate.waiting)),
    "decant_slots_used": ("Slots in use.", lambda c: c.gate.used),
    "decant_slots": ("Slots.", lambda c: c.gate.capacity),
    "decant_model_loaded": ("Whether the model is loaded.", lambda c: c.is_loaded),
    "decant_model_bytes": ("Memory of the model, as reckoned.", lambda c: c.nbytes),
    "decant_model_load_seconds": ("What loading took.", lambda c: c.load_s),
}
COUNTERS: dict[str, tuple[str, Callable[[Child], float]]] = {
    "decant_child_restarts": ("Children that died.", lambda c: c.restarts),
    "decant_epoch_switches": ("Changes of adapters.", lambda c: c.gate.switches),
}


class FleetCollector(Collector):
    """What is known of each child at the moment of asking."""

    def __init__(self, children: Mapping[Any, Child]) -> None:
        """Watch over a gateway's children, as they come and go."""
        self.children = children

    def collect(self) -> Iterator[Metric]:
        for kind, families in (("gauge", GAUGES), ("counter", COUNTERS)):
            for name, (told, read) in families.items():
                family = Metric(name, told, kind)
                suffix = "_total" if kind == "counter" else ""
                for child in self.children.values():
                    family.add_sample(name + suffix, {"model": child.name}, float(read(child)))
                yield family


def relabelled(texts: dict[str, str]) -> bytes:
    """The children's own metrics, each with its model's name."""
    types = {name: kind for text in texts.values() for name, kind in TYPE.findall(text)}
    lines = []
    for name, kind in types.items():
        lines.append(f"# TYPE decant_llamacpp_{name} {kind}")
        for model, text in texts.items():
            for found, value in SAMPLE.findall(text):
                if found == name:
                    label = model.replace("\\", "\\\\").replace('"', '\\"')
                    lines.append(f'decant_llamacpp_{name}{{model="{label}"}} {value}')
    return ("\n".join(lines) + "\n").encode() if lines else b""
