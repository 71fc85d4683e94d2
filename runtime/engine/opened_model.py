"""A GGUF with its adapters and its projector, opened by their headers; no weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from exporter.core.errors import (
    ModelError,
    UnsupportedError,
)
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.model_store import StoredModel, projector_beside, refuse_adapter
from runtime.encoder_decoder.model import is_encoder_decoder
from runtime.engine.adapters import Adapter, check_adapter
from runtime.engine.chat_format import AS_IT_IS, ChatFormat, chat_format, templates_of
from runtime.engine.memory_need import LAYERS_KEPT
from runtime.engine.own_template import (
    OwnTemplate,
    first_own,
    handed_over_template,
    own_templates,
)
from runtime.engine.request_texts import Fronts, front_of

ANY_TEMPLATE = "{{ messages[0].content }}"
"""The start template of an engine that gets the real one with each request."""


@dataclass(frozen=True, slots=True)
class Model:
    """A GGUF and the files loaded with it."""

    header: GGUFFile
    adapters: tuple[Adapter, ...] = ()
    projector: Path | None = None
    chat_template: str | None = None
    """A template to use in place of the files' own."""
    own: tuple[OwnTemplate | None, ...] = ()
    """The adapters' templates, by index; None for an adapter without one."""
    is_handed_over: bool = False
    """Whether each request brings the template, because the engine does not start with it."""

    @property
    def name(self) -> str:
        return StoredModel(self.header.path).full_name

    @property
    def is_encoder_decoder(self) -> bool:
        return is_encoder_decoder(self.header)

    @property
    def can_chat(self) -> bool:
        """Whether it has a chat template or needs none; a base model has none."""
        return bool(self.chat_template or templates_of(self.header)[0]) or self.is_encoder_decoder

    def template_scales(self, adapter: str, scales: Sequence[float]) -> Sequence[float]:
        """The scales by which a template is chosen.

        A base without a template uses that of the named adapter, at any scale.
        """
        if self.can_chat or not adapter:
            return scales
        return [float(one.name == adapter) for one in self.adapters]

    def can_chat_with(self, scales: Sequence[float]) -> bool:
        """Whether the model, or an adapter that is applied, has a template."""
        return self.can_chat or first_own(self.own, scales) is not None

    @property
    def chat(self) -> ChatFormat:
        """How its conversations are rendered; the first access takes a moment."""
        if self.is_encoder_decoder:
            return AS_IT_IS
        if self.is_handed_over:
            shared = chat_format(self.header, self.chat_template, is_shared=True)
            return replace(shared, template=ANY_TEMPLATE, variables=(), samples=())
        return chat_format(self.header, self.chat_template, is_shared=any(self.own))

    @property
    def fronts(self) -> Fronts:
        """The preparation of requests. Raises ModelError for a damaged normalizer."""
        front = front_of(self.header, self.chat)
        if self.is_handed_over:
            own = handed_over_template(self.header.path, self.chat_template)
            front = replace(front, own=own)
        return Fronts(front, self.own)


def open_model(
    path: Path, adapters: tuple[Adapter, ...] = (), projector: Path | None = None
) -> Model:
    """Read the headers and check that the files fit together; no weights are loaded.

    A projector beside the model is found by its usual names. Raises ModelError and
    UnsupportedError.
    """
    header = read_gguf(path, keep_items=LAYERS_KEPT)
    refuse_adapter(header)
    if header.architecture == "clip":
        raise ModelError(
            f"`{path}` is a projector: it lets a model see, but cannot answer by itself",
            hint="name the model, and this with --mmproj",
        )
    if not header.tensors:
        raise ModelError(
            f"`{path}` holds no tensor, so there is no model in it",
            hint="export or download it again",
        )
    for adapter in adapters:
        check_adapter(adapter, header)
    model = Model(header, adapters, projector or find_projector(header))
    if model.is_encoder_decoder and adapters:
        raise UnsupportedError(
            f"`{path}` is an encoder-decoder, whose engine takes no adapters",
            hint="merge it into the model: decant export ADAPTER",
        )
    return replace(model, own=own_templates(adapters, path))


def find_projector(model: GGUFFile) -> Path | None:
    """The projector beside a model, if its embeddings have the model's width."""
    stored = StoredModel(model.path)
    path = projector_beside(model.path, (stored.name, stored.full_name))
    width = model.number(f"{model.architecture}.embedding_length")
    try:
        projector = read_gguf(path) if path else None
    except ModelError:
        return None
    return path if projector and projector.number("clip.vision.projection_dim") == width else None
