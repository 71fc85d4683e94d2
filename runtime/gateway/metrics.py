"""Counters and figures for Prometheus.

`relabelled` replaces prometheus_client.parser, which appends _total to every counter's name: it
would rename llama-server's n_tokens_max, and would take as many lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from runtime.engine.opened_model import Model
from runtime.gateway.scheduling.engine_entry import EngineEntry

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SAMPLE = re.compile(r"^llamacpp:([a-zA-Z_]+)(?:\{[^}]*\})? ([-+.\w]+)$", re.MULTILINE)
TYPE = re.compile(r"^# TYPE llamacpp:([a-zA-Z_]+) (\w+)$", re.MULTILINE)


class Metrics:
    """The counters and histograms of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "decant_requests", "Requests answered.", ["route", "model", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.duration = Histogram(
            "decant_request_seconds", "Time from the request's head to the answer's end.",
            ["route", "model"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first = Histogram(
            "decant_time_to_first_token_seconds",
            "Time from the request's head to the first bytes of a streamed answer.",
            ["model"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.wait = Histogram(
            "decant_queue_wait_seconds", "Time in the queue, of admitted requests.", ["model"],
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

    def forget(self, model: str) -> None:
        """Drop the series of a model that is no longer served."""
        for metric in (
            self.requests, self.duration, self.first, self.wait, self.gone, self.streamed
        ):  # fmt: skip
            metric.remove_by_labels({"model": model})

    def text(self) -> bytes:
        found: bytes = generate_latest(self.registry)
        return found


GAUGES: dict[str, tuple[str, Callable[[EngineEntry], float]]] = {
    "decant_queue_depth": ("Waiting requests.", lambda engine: len(engine.queue.waiting)),
    "decant_slots_used": ("Slots in use.", lambda engine: engine.queue.used),
    "decant_slots": ("Slots.", lambda engine: engine.queue.capacity),
    "decant_model_loaded": ("Whether the model is loaded.", lambda engine: engine.is_loaded),
    "decant_model_bytes": ("Planned memory of the model.", lambda engine: engine.nbytes),
    "decant_model_load_seconds": ("Duration of the last load.", lambda engine: engine.load_s),
}
COUNTERS: dict[str, tuple[str, Callable[[EngineEntry], float]]] = {
    "decant_child_restarts": ("Engines that died.", lambda engine: engine.restarts),
    "decant_epoch_switches": (
        "Batch windows that began with other LoRA scales.",
        lambda engine: engine.queue.switches,
    ),
}


class PoolCollector(Collector):
    """Collects the figures of each engine at the time of a scrape."""

    def __init__(self, engines: Mapping[Any, EngineEntry]) -> None:
        """engines: the pool's own mapping, so that later engines are included."""
        self.engines = engines

    def collect(self) -> Iterator[Metric]:
        for kind, families in (("gauge", GAUGES), ("counter", COUNTERS)):
            for name, (help_text, read) in families.items():
                family = Metric(name, help_text, kind)
                suffix = "_total" if kind == "counter" else ""
                for engine in self.engines.values():
                    family.add_sample(name + suffix, {"model": engine.name}, float(read(engine)))
                yield family


class AdapterCollector(Collector):
    """Collects how many adapters each model has."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        """models: the catalog's own mapping, so that later changes are included."""
        self.models = models

    def collect(self) -> Iterator[Metric]:
        family = Metric("decant_adapters", "Adapters that are served.", "gauge")
        for id_, model in self.models.items():
            family.add_sample("decant_adapters", {"model": id_}, float(len(model.adapters)))
        yield family


def relabelled(texts: dict[str, str]) -> bytes:
    """The engines' metrics, each with a label for its model."""
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
