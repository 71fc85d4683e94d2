"""The models that `decant eval` compares, opened from what the command line names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter.core.errors import InputError
from exporter.core.events import Report, Warn
from exporter.core.gguf import SHARD, GGUFFile
from exporter.core.near_names import did_you_mean
from runtime.cli.from_folder import model_of
from runtime.engine.adapters import BASE, bring_adapters, parse_adapter
from runtime.engine.memory_fit import FitOptions
from runtime.engine.opened_model import Model, open_model
from runtime.engine.remote import parse_url, read_key
from runtime.engine.remote_engine import RemoteEngine
from runtime.engine.selection import AdapterSelection
from runtime.evaluation.data.training_data import leaks
from runtime.evaluation.evaluated_model import EvaluatedModel
from runtime.evaluation.local_model import LocalEngines, LocalModel
from runtime.evaluation.outcome_cache import OutcomeCache
from runtime.evaluation.remote_model import RemoteModel
from runtime.evaluation.run_evaluation import ModelGroup


@dataclass(frozen=True, slots=True)
class WantedModels:
    """The models on the command line."""

    models: tuple[str, ...]
    adapters: tuple[str, ...] = ()
    """NAME=PATH[:SCALE], beside the one model."""
    base: str | None = None
    fit_options: FitOptions = field(default_factory=FitOptions)
    url: str | None = None
    remote_model: str | None = None
    key_file: Path | None = None
    has_questions: bool = True
    """Whether the data has conversations."""


def open_models(
    wanted: WantedModels, store: Path, cache: OutcomeCache, *, report: Report
) -> list[ModelGroup]:
    """Open all models; no weights are loaded yet.

    Raises InputError for adapters beside several models and for two models of one name, and the
    errors of finding, pulling, converting and exporting.
    """
    if wanted.adapters and len(wanted.models) != 1:
        raise InputError(
            f"--adapter goes with one model, and {len(wanted.models)} are named",
            hint="name the base, and an --adapter for each fine-tune",
        )
    groups = []
    for text in wanted.models:
        found = model_of(text, wanted.base, store, report=report)
        beside = (found.adapter,) if found.adapter else ()
        brought = bring_adapters(wanted.adapters, wanted.base, store, report=report)
        model = open_model(found.path, (*beside, *brought))
        groups.append(local_group(model, wanted.fit_options, cache, report))
    if wanted.url is not None:
        server = server_model(wanted.url, wanted.remote_model, wanted.key_file, "data", report)
        groups.append(ModelGroup((replace(server, has_questions=wanted.has_questions),)))
    names = [model.name for group in groups for model in group.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"two models are called {twice[0]!r}", hint="rename one of their files or adapters"
        )
    return groups


def local_group(
    model: Model, options: FitOptions, cache: OutcomeCache, report: Report
) -> ModelGroup:
    """The models of a GGUF: the GGUF alone, and with each of its adapters."""
    engines = LocalEngines(model, options, report=report)
    header = model.header
    sha256 = hash_of(header, cache)
    known: dict[str, Any] = {
        "quant": header.text("decant.quant") or quant_in(header.path),
        "nbytes": header.nbytes,
        "sha256": sha256,
    }
    alone = {"model": sha256, "build": engines.engine.toolchain.folder.name}
    models: list[EvaluatedModel] = [
        LocalModel(model.name, engines, AdapterSelection(), alone, **known)
    ]
    for adapter in model.adapters:
        identity = {
            **alone,
            "adapter": cache.sha256_of(adapter.path),
            "scale": adapter.scale,
        }
        selection = AdapterSelection(adapter.name, adapter.scale)
        models.append(
            LocalModel(
                f"{BASE}:{selection}" if adapter.name == model.name else str(selection),
                engines,
                selection,
                identity,
                quant=known["quant"],
                nbytes=known["nbytes"] + adapter.path.stat().st_size,
                sha256=str(identity["adapter"]),
            )
        )
    return ModelGroup(tuple(models), engines)


def hash_of(header: GGUFFile, cache: OutcomeCache) -> str:
    """The file's hash; for a split model, the hash of its files' hashes."""
    if not header.shards:
        return cache.sha256_of(header.path)
    hashes = [cache.sha256_of(path) for path in header.shards]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def quant_in(path: Path) -> str:
    """The type at the end of a file's name, such as Q4_K_M; empty without one."""
    named = SHARD.fullmatch(path.name)
    last = (named["stem"] if named else path.stem).rpartition("-")[2]
    return last if last[:1] in "QFBIT" and any(sign.isdigit() for sign in last) else ""


def server_model(
    url: str, name: str | None, key_file: Path | None, what: str, report: Report
) -> RemoteModel:
    """A server's model; warns before `what` crosses a network unencrypted.

    Raises InputError and EngineError.
    """
    key = read_key(key_file) if key_file else None
    remote = parse_url(url, key)
    if remote.is_exposed:
        report(Warn(f"the {what} will cross the network unencrypted (http)"))
    found = RemoteEngine(remote, name).model
    return RemoteModel(found, remote, found)


def compared_with(groups: Sequence[ModelGroup], named: str | None) -> str:
    """The model that the others are compared with: the named one, else a base or the largest.

    Raises InputError for a name that no model has.
    """
    models = [model for group in groups for model in group.models]
    names = [model.name for model in models]
    if named is not None:
        if named == BASE and named not in names:
            return bases(groups)[0].name
        if named not in names:
            raise InputError(
                f"--against {named!r} is none of the models",
                hint=did_you_mean(named, names, f"one of {', '.join(names)}"),
            )
        return named
    if len(models) == 1:
        return ""
    if found := [group.models[0] for group in groups if len(group.models) > 1]:
        return found[0].name
    return max(models, key=lambda model: int(model.facts().get("nbytes", 0))).name


def bases(groups: Sequence[ModelGroup]) -> list[EvaluatedModel]:
    """The models without an adapter, those with adapters beside them first."""
    return [group.models[0] for group in sorted(groups, key=lambda one: -len(one.models))]


def leak_notes(
    wanted: WantedModels, source: str, *, split: str | None, is_held_out: bool
) -> tuple[str, ...]:
    """Sentences on adapters that were trained on the data."""
    places = [Path(text) for text in wanted.models]
    places += [Path(parse_adapter(text).place) for text in wanted.adapters]
    found = (
        leaks(place, source, split=split, is_held_out=is_held_out)
        for place in places
        if place.exists()
    )
    return tuple(dict.fromkeys(one for one in found if one))
