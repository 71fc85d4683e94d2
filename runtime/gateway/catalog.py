"""The models a gateway serves, and their names: NAME, NAME:ADAPTER, NAME:ADAPTER@SCALE."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any

from exporter.core.errors import DecantError, InputError, ModelError
from exporter.core.events import Report, Warn, silent
from exporter.core.gguf import read_gguf
from exporter.core.near_names import did_you_mean
from exporter.model_store import StoredModel, gone, list_gone, list_models
from runtime.engine.adapters import BASE, SCALE_MAX, Adapter, check_adapter
from runtime.engine.chat_format import templates_of
from runtime.engine.memory_need import LAYERS_KEPT
from runtime.engine.opened_model import Model, open_model
from runtime.engine.own_template import first_own
from runtime.gateway.api_errors import ApiError, bad_request
from runtime.gateway.scheduling.request_queue import LoraScales

LATEST = ":latest"  # appended by Ollama's clients
OWNER = "decant"
NAME_MAX = 512  # characters
SHOWN = 200  # characters of a name in an error
NEAR_MAX = 128  # names that are compared with an unknown one, in some 10 ms
SCALE = re.compile(r"[+-]?(\d{1,3}(\.\d{0,8})?|\.\d{1,8})(e-?\d{1,2})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """The model and the LoRA scales that a request's `model` names."""

    id: str
    """The listed name; with a scale only if the client gave one."""
    base: str
    """The id of the base, whose engine answers."""
    model: Model
    adapter: Adapter | None
    lora_scales: LoraScales

    @property
    def needs(self) -> tuple[Adapter, ...]:
        """The adapters that answer: those with a scale, and one whose template is used."""
        adapters = self.model.adapters
        own = self.model.own or (None,) * len(adapters)
        return tuple(
            adapter
            for adapter, scale, template in zip(adapters, self.lora_scales, own, strict=True)
            if scale or (adapter is self.adapter and template)
        )

    @property
    def can_chat(self) -> bool:
        """Whether this name has a chat template."""
        model = self.model
        return model.can_chat or (any(model.own) and model.can_chat_with(self.template_scales))

    @property
    def template_scales(self) -> Sequence[float]:
        """The scales that choose the template."""
        return self.model.template_scales(
            self.adapter.name if self.adapter else "", self.lora_scales
        )

    @property
    def template(self) -> str:
        """The chat template of this name; empty for none."""
        own = first_own(self.model.own, self.template_scales)
        if own is not None:
            return own.facts.plain
        return self.model.chat_template or templates_of(self.model.header)[0]

    @property
    def label(self) -> str:
        """The id without a scale, for metrics: clients may choose any number of scales."""
        return self.id.partition("@")[0] if self.adapter else self.id


class Catalog:
    """The served models by their ids. Reads only headers."""

    def __init__(self, models: Sequence[Model]) -> None:
        """Give each model its shortest distinct name. Raises InputError for equal names."""
        self.models: dict[str, Model] = {}
        self.others: dict[str, str] = {}
        """The ids by their longer names."""
        short = [StoredModel(model.header.path).name for model in models]
        for model, name in zip(models, short, strict=True):
            id_ = name if short.count(name) == 1 else model.name
            refuse_unspeakable(id_, model.header.path)
            if id_ in self.models:
                raise InputError(f"two models are called {id_!r}", hint="rename one of the files")
            self.models[id_] = model
            self.others[model.name] = id_

    def find(self, name: object) -> ResolvedModel:
        """The model that a name means. Raises ApiError when the server has no such model."""
        if name is None and len(self.models) == 1:
            name = next(iter(self.models))
        if not isinstance(name, str) or not name:
            raise bad_request("`model` must be the name of a model", code="model_required")
        if len(name) > NAME_MAX or not name.isprintable():
            raise self.unknown(name)
        # `latest` is an adapter of that name, otherwise the tag of Ollama's clients
        plain = name.removesuffix(LATEST)
        for spelled in (plain,) if "@" in plain else dict.fromkeys((name, plain)):
            if (found := self.spelled(spelled)) is not None:
                return found
        raise self.unknown(name)

    def spelled(self, name: str) -> ResolvedModel | None:
        """The model of exactly this name. Raises ApiError for a scale that is no number."""
        for base, rest in splits(name):
            id_ = self.others.get(base, base)
            if (model := self.models.get(id_)) is None:
                continue
            if not rest:
                return ResolvedModel(id_, id_, model, None, (0.0,) * len(model.adapters))
            return self.adapted(id_, model, rest)
        bases = self.bases_of(name.partition("@")[0])
        return self.adapted(bases[0], self.models[bases[0]], name) if len(bases) == 1 else None

    def adapted(self, id_: str, model: Model, rest: str) -> ResolvedModel | None:
        called, at, text = rest.partition("@")
        if called == BASE and not at:
            return ResolvedModel(id_, id_, model, None, (0.0,) * len(model.adapters))
        for place, adapter in enumerate(model.adapters):
            if adapter.name == called:
                return with_adapter(id_, model, place, scale_of(text) if at else None)
        return None

    def bases_of(self, adapter: str) -> list[str]:
        """The ids of the models that have an adapter of this name."""
        return [
            id_
            for id_, model in self.models.items()
            if any(one.name == adapter for one in model.adapters)
        ]

    def unknown(self, name: str) -> ApiError:
        shown = name[:SHOWN]
        ids = [resolved.id for resolved in islice(self, NEAR_MAX)]
        otherwise = "GET /v1/models lists the models"
        advice = did_you_mean(shown, ids, otherwise, form="{!r}", alike=0.5)
        return ApiError(
            HTTPStatus.NOT_FOUND, f"there is no model {shown!r}; {advice}", "model_not_found"
        )

    def ids(self) -> list[str]:
        return [resolved.id for resolved in self]

    def __iter__(self) -> Iterator[ResolvedModel]:
        for id_, model in self.models.items():
            yield ResolvedModel(id_, id_, model, None, (0.0,) * len(model.adapters))
            for place in range(len(model.adapters)):
                yield with_adapter(id_, model, place)


def with_adapter(id_: str, model: Model, place: int, scale: float | None = None) -> ResolvedModel:
    """A base with one of its adapters, by its index; scale: None for the adapter's own scale."""
    adapter = model.adapters[place]
    name = f"{id_}:{adapter.name}" if scale is None else f"{id_}:{adapter.name}@{scale:g}"
    applied = adapter.scale if scale is None else scale
    others = len(model.adapters) - place - 1
    lora_scales = (*(0.0,) * place, applied, *(0.0,) * others)
    return ResolvedModel(name, id_, model, adapter, lora_scales)


def scale_of(text: str) -> float:
    """The scale after a name's `@`. Raises ApiError.

    Rounded to the digits that the id shows, so that equal ids have equal scales.
    """
    if not SCALE.fullmatch(text) or abs(scale := float(f"{float(text):g}")) > SCALE_MAX:
        raise bad_request(f"{text[:SHOWN]!r} is not a scale: use a number such as 0.5, at most 100")
    return scale + 0.0  # -0 is 0


def refuse_unspeakable(id_: str, path: Path) -> None:
    """Raise InputError for a name that headers and log lines cannot hold."""
    if len(id_) > NAME_MAX or not id_.isprintable():
        raise InputError(
            f"`{path}` gives a name that no request can say: {id_[:SHOWN]!r}",
            hint="rename the file",
        )


def splits(name: str) -> Iterator[tuple[str, str]]:
    """The whole name, then the name split at each colon."""
    yield name, ""
    for place, letter in enumerate(name):
        if letter == ":" and place + 1 < len(name):
            yield name[:place], name[place + 1 :]


def listing(resolved: ResolvedModel) -> dict[str, Any]:
    """A model's entry in GET /v1/models."""
    path = resolved.adapter.path if resolved.adapter else resolved.model.header.path
    scale = {"scale": resolved.adapter.scale} if resolved.adapter else {}
    inputs = ["text"] if resolved.model.projector is None else ["text", "image"]
    return {
        "id": resolved.id,
        "object": "model",
        "created": int(path.stat().st_mtime) if path.exists() else 0,
        "owned_by": OWNER,
        "root": resolved.base,
        "parent": resolved.base if resolved.adapter else None,
        "chat_template": resolved.can_chat,
        "architecture": {"input_modalities": inputs, "output_modalities": ["text"]},
    } | scale


def stored_models(store: Path, *, report: Report = silent) -> list[Model]:
    """All models of the store, each base with the store's adapters that were trained on it.

    Unreadable files are skipped with a warning.
    """
    models, adapters = [], []
    for stored in list_models(store):
        try:
            refuse_unspeakable(stored.full_name, stored.path)
            header = read_gguf(stored.path, keep_items=LAYERS_KEPT)
            if header.is_adapter:
                name = stored.path.name.partition(".")[0]
                adapters.append((header.text("decant.base"), Adapter(name, stored.path, 1.0)))
            elif header.architecture != "clip":
                models.append(open_model(stored.path))
        except DecantError as error:
            report(Warn(f"`{stored.path.name}` is not served: {error.message}"))
    for stored in list_gone(store):
        report(Warn(f"`{stored.path.name}` is not served: {gone(stored).message}"))
    return [with_adapters(model, adapters, report=report) for model in models]


def with_adapters(
    model: Model, adapters: Sequence[tuple[str | None, Adapter]], *, report: Report
) -> Model:
    """The model with the adapters that were trained on it; a merged model gets none."""
    header = model.header
    base = header.text("decant.base")
    if base is None or header.text("decant.adapter") is not None or model.is_encoder_decoder:
        return model
    mine = tuple(adapter for trained_on, adapter in adapters if trained_on == base)
    try:
        return open_model(header.path, mine, model.projector) if mine else model
    except DecantError as error:
        report(Warn(f"`{header.path.name}` is served without adapters: {error.message}"))
        return model


def fitting_models(adapter: Adapter, models: Iterable[Model]) -> list[Model]:
    """The models that an adapter fits; of these, the merged ones only if there are no others.

    Adapters are trained on a base, so a merged model is the second choice. Raises the ModelError
    of the last model if none fits.
    """
    found, error = [], None
    for model in models:
        try:
            check_adapter(adapter, model.header)
            found.append(model)
        except ModelError as caught:
            error = caught
    if not found and error is not None:
        raise error
    return [one for one in found if one.header.text("decant.adapter") is None] or found


def with_adapters_of(model: Model, adapters: Mapping[Path, Sequence[Adapter]]) -> Model:
    """The model with the adapters given for its path. Raises the errors of `open_model`."""
    mine = adapters.get(model.header.path)
    return open_model(model.header.path, tuple(mine), model.projector) if mine else model
