"""The models of `decant serve`, with the adapters that its options give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import click

from exporter.cli.common_options import store
from exporter.core.errors import InputError, UnsupportedError
from exporter.core.events import Note, Report
from exporter.model_store import find_model
from runtime.cli.from_folder import model_of
from runtime.engine.adapters import Adapter, bring_adapters
from runtime.engine.opened_model import Model, open_model
from runtime.engine.speculation import Speculation, speculation_of
from runtime.engine.template_choice import read_template, with_template
from runtime.gateway.catalog import fitting_models, stored_models, with_adapters_of
from runtime.gateway.config_file import ModelTable


@dataclass(frozen=True, slots=True)
class Named:
    """The models and adapters that the command line and the configuration file name."""

    models: tuple[str, ...]
    adapters: tuple[str, ...]
    """In the form of --adapter."""
    base: str | None
    tables: tuple[ModelTable, ...]


def models_of(named: Named, report: Report) -> list[Model]:
    """The models to serve. Raises the errors of finding, pulling and reading them."""
    if not named.models and not named.tables:
        if named.adapters:
            raise click.UsageError("--adapter needs the MODEL that is its base")
        return stored_models(store(), report=report)
    paths, beside = placed(named, report)
    models = [open_model(path) for path in paths]
    adapters = bring_adapters(named.adapters, named.base, store(), report=report)
    found = assigned(models, adapters, beside)
    for table in named.tables:
        path = find_model(table.path, store(), report=report)
        own = bring_adapters(table.adapters, table.base, store(), report=report)
        found.append(open_model(path, own))
    return found


def placed(named: Named, report: Report) -> tuple[tuple[Path, ...], dict[Path, list[Adapter]]]:
    """The GGUFs that are named, each once, and the adapters of named folders by their GGUF."""
    paths, beside = [], dict[Path, list[Adapter]]()
    for name in named.models:
        found = model_of(name, named.base, store(), report=report)
        paths.append(found.path)
        if found.adapter is not None:
            beside.setdefault(found.path, []).append(found.adapter)
    return tuple(dict.fromkeys(paths)), beside


def with_templates(models: Sequence[Model], name: str | None) -> list[Model]:
    """Give the named template to the only model; of several models, to those without one."""
    if name is None:
        return list(models)
    text = read_template(name)
    return [
        with_template(model, text) if len(models) == 1 or not model.can_chat else model
        for model in models
    ]


def speculation_for_models(text: str, models: Sequence[Model], report: Report) -> Speculation:
    """The meaning of --spec for these models; reports those that cannot use it.

    Raises UnsupportedError if none can, and the errors of finding and reading a draft model.
    """
    speculation = speculation_of(text, store(), report=report)
    refused = []
    for model in models:
        try:
            speculation.fitted(model)
        except UnsupportedError as error:
            refused.append(error)
    if refused and len(refused) == len(models):
        raise refused[0]
    for refusal in refused:
        report(Note(f"{refusal.message}: it answers without"))
    return speculation


def assigned(
    models: Sequence[Model],
    adapters: Sequence[Adapter],
    beside: Mapping[Path, Sequence[Adapter]] = MappingProxyType({}),
) -> list[Model]:
    """Load each adapter beside the model that it fits.

    beside: adapters whose models are known. Raises ModelError or InputError if no model fits,
    InputError if several do.
    """
    mine = {path: list(known) for path, known in beside.items()}
    for adapter in adapters:
        fitting = fitting_models(adapter, models)
        if not fitting:
            raise InputError(f"no MODEL is the base of {adapter.name!r}")
        if len(fitting) > 1:
            names = " and ".join(model.name for model in fitting)
            raise InputError(
                f"the adapter {adapter.name!r} fits {names}",
                hint="assign it to one in a file: --config; docs/serve.md shows how",
            )
        mine.setdefault(fitting[0].header.path, []).append(adapter)
    return [with_adapters_of(model, mine) for model in models]
