"""The interface of a conversation's engine, and the engine in a child process of decant's."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from exporter.core.errors import (
    EngineError,
    InputError,
    TemplateRefusedError,
    UnsupportedError,
)
from exporter.core.events import Note, Report, Warn, silent
from exporter.core.machine import available_nbytes, physical_cores
from exporter.core.near_names import did_you_mean
from exporter.llamacpp.gpus import free_nbytes
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.adapters import BASE
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.lora_scales import lora_vector
from runtime.engine.memory_fit import Fit, FitOptions, fit, spread_over
from runtime.engine.memory_limit import copies, memory_limit
from runtime.engine.openai_client import (
    Message,
    Piece,
    as_one_text,
    ask,
    ask_json,
    complete,
    read_tokens,
)
from runtime.engine.opened_model import Model
from runtime.engine.own_template import (
    template_refused,
)
from runtime.engine.prompt_plan import KEPT_NBYTES, with_prompts
from runtime.engine.purpose import refuse_without_answers
from runtime.engine.request_texts import Front, Fronts, template_notes, unlike
from runtime.engine.selection import MERGED, AdapterSelection
from runtime.engine.speculation import OFF, Speculation
from runtime.rpc.protocol import WorkerFacts, preflight

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
INPUT_TOKENS = f"{CHAT}/input_tokens"
RAW_TOKENS = 256
"""Tokens of an answer without a chat template, which nothing else ends."""
RAW_LIMIT = {"max_tokens": RAW_TOKENS}


class Engine(Protocol):
    """The interface of an engine to a conversation."""

    @property
    def model(self) -> str: ...

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that a selection may have here."""
        ...

    @property
    def sees(self) -> bool:
        """Whether it accepts images."""
        ...

    def answer(
        self,
        messages: Sequence[Message],
        settings: Mapping[str, object],
        selection: AdapterSelection,
    ) -> Generator[Piece, None, None]: ...

    def count(self, messages: Sequence[Message], selection: AdapterSelection) -> int | None:
        """The number of a prompt's tokens; None if the server does not count."""
        ...

    def tokens(self, text: str) -> list[tuple[int, str | bytes]]:
        """The tokens of a text: ids, and the texts or bytes that they stand for."""
        ...

    def facts(self) -> dict[str, str]: ...

    def source(self) -> dict[str, Any]:
        """The settings that open the same engine again: model, adapters, projector, or url."""
        ...

    def stop(self) -> None: ...


class LocalEngine:
    """A model in a child process, which is started again after it died."""

    def __init__(
        self,
        model: Model,
        options: FitOptions,
        *,
        raw: bool = False,
        speculation: Speculation = OFF,
        prompt_folder: Path | None = None,
        report: Report = silent,
    ) -> None:
        """Fit the model into this machine's memory. Raises SpaceError if it does not fit.

        raw: continue the messages' text without the chat template; prompt_folder: where its prompt
        is kept when it stops. Raises UnsupportedError for a model that generates no text, or cannot
        use the kind of speculation.
        """
        refuse_without_answers(model.header)
        self.wanted, self.speculation = speculation, speculation.fitted(model)
        options = replace(options, draft=self.speculation.draft)
        self.loaded, self.options, self.raw, self.report = model, options, raw, report
        self.toolchain = find_toolchain()
        beside = [adapter.path for adapter in model.adapters]
        workers = self.preflight()
        backend = self.toolchain.info["backend"]
        self.fit: Fit = fit(
            model.header,
            beside + ([model.projector] if model.projector else []),
            options,
            free=available_nbytes() + sum(sum(worker.free) for worker in workers),
            cores=physical_cores(),
            backend=backend,
            gpu=free_nbytes(self.toolchain),
        )
        self.rpc = options.rpc and spread_over(
            options.rpc, workers, model.header, self.fit.need, backend
        )
        for warning in self.fit.warnings():
            report(Warn(warning))
        self.prompt_folder = prompt_folder
        self.server: Server | None = None
        self.fronts = Fronts()
        self.was_compared = False

    @property
    def spec(self) -> ServerSpec:
        header, parallel = self.loaded.header, self.options.parallel
        found = ServerSpec(
            header.path,
            self.fit.context,
            self.fit.threads,
            parallel,
            tuple(adapter.path for adapter in self.loaded.adapters),
            self.loaded.projector,
            self.fit.cache_type,
            # the caches of earlier prompts would be fetched from the workers and sent back
            0 if self.rpc else self.fit.prompt_cache,
            "seq2seq" if self.loaded.is_encoder_decoder else "llama-server",
            rpc=self.rpc,
            chat=self.loaded.chat,
            extra=(*self.gpu_flags, *self.speculation.flags()),
            memory=memory_limit(header, self.fit, parallel, sees=self.sees),
            copies=copies(header, self.fit, parallel),
        )
        if self.prompt_folder is None:
            return found
        kept = self.prompt_folder, KEPT_NBYTES
        beside = self.loaded, self.toolchain, self.speculation
        return with_prompts(found, *beside, self.gpu_flags, kept)

    @property
    def gpu_flags(self) -> tuple[str, ...]:
        """llama-server's option for the user's number of layers on the GPU."""
        layers = self.options.gpu_layers
        return () if layers is None or self.loaded.is_encoder_decoder else ("-ngl", str(layers))

    def preflight(self) -> tuple[WorkerFacts, ...]:
        """Check the workers, if there are any. Raises WorkerError and UnsupportedError."""
        if self.options.rpc is None:
            return ()
        if self.loaded.is_encoder_decoder:
            raise UnsupportedError(
                f"`{self.loaded.header.path}` is an encoder-decoder, which workers cannot compute",
                hint="leave out --rpc",
            )
        return preflight(self.options.rpc, self.toolchain, report=self.report)

    @property
    def model(self) -> str:
        return self.loaded.name

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(adapter.name for adapter in self.loaded.adapters)

    @property
    def sees(self) -> bool:
        return self.loaded.projector is not None

    def start(self) -> Server:
        """The running server; a new one if there is none or it has died. Raises EngineError."""
        if self.server is not None:
            try:
                self.server.raise_if_gone()
            except EngineError:
                self.stop()
            else:
                return self.server
        try:
            server = Server(self.spec, self.toolchain, report=self.report)
            self.server = server.__enter__()
        except TemplateRefusedError as error:
            if self.loaded.is_handed_over:
                raise
            self.report(Warn(template_refused(self.model, error)))
            self.loaded = replace(self.loaded, is_handed_over=True)
            return self.start()
        self.fronts = self.loaded.fronts
        if not self.was_compared:
            self.was_compared = True
            self.compare(server)
        return server

    def compare(self, server: Server) -> None:
        """Report conversations that the engine renders differently from transformers."""
        for note in unlike(server, self.loaded.chat):
            self.report(Note(f"{self.model}: {note}"))
        for adapter, own in zip(self.loaded.adapters, self.loaded.own, strict=True):
            for note in template_notes(server, own):
                self.report(Note(f"{adapter.name}: {note}"))

    def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop(is_saving=True)

    def answer(
        self,
        messages: Sequence[Message],
        settings: Mapping[str, object],
        selection: AdapterSelection,
    ) -> Generator[Piece, None, None]:
        """Stream the answer. Raises the errors of `openai_client.ask`."""
        server = self.start()
        scales = self.scales(selection)
        front = self.front(selection)
        rest = {**settings, **(lora_vector(scales) if scales else {})}
        if not self.can_chat(selection):
            text = {"prompt": as_one_text(messages), **RAW_LIMIT, **rest}
            request = front.ready(COMPLETIONS, text)
            yield from complete(server, request.pop("prompt"), request)
            return
        request = front.ready(CHAT, {"messages": list(messages), **rest})
        yield from ask(server, request.pop("messages"), request)

    def can_chat(self, selection: AdapterSelection) -> bool:
        """Whether the model or the chosen adapter has a chat template."""
        scales = self.loaded.template_scales(selection.adapter, self.scales(selection))
        return not self.raw and self.loaded.can_chat_with(scales)

    def front(self, selection: AdapterSelection) -> Front:
        """The preparation of requests for a selection."""
        return self.fronts.of(
            self.loaded.template_scales(selection.adapter, self.scales(selection))
        )

    def scales(self, selection: AdapterSelection) -> list[float]:
        """Every adapter's scale: 0, but for the chosen one. Raises InputError for another name."""
        if selection.adapter not in ("", BASE, *self.choices):
            raise InputError(
                f"there is no adapter {selection.adapter!r}",
                hint=did_you_mean(selection.adapter, self.choices, f"there are: {self.named}"),
            )
        return [selection.scale if selection.adapter == name else 0.0 for name in self.choices]

    @property
    def named(self) -> str:
        return ", ".join((BASE, *self.choices))

    def count(self, messages: Sequence[Message], selection: AdapterSelection) -> int | None:
        if not self.can_chat(selection):
            return len(self.tokens(as_one_text(messages)))
        body = {"messages": list(messages)}
        with suppress(EngineError):
            server = self.start()
            front = self.front(selection)
            found = ask_json(server, INPUT_TOKENS, front.ready(INPUT_TOKENS, body))
            return int(found["input_tokens"])
        return None

    def tokens(self, text: str) -> list[tuple[int, str | bytes]]:
        server = self.start()
        body = {"content": text, "with_pieces": True, "add_special": False}
        found = ask_json(server, "/tokenize", self.fronts.base.ready("/tokenize", body))
        return read_tokens(found)

    def facts(self) -> dict[str, str]:
        header = self.loaded.header
        facts = {
            "model": str(header.path),
            "architecture": header.architecture,
            "parameters": f"{header.parameters:,}",
            "base": header.text("decant.base") or "",
            "merged": header.text("decant.adapter") or "",
            "adapters": ", ".join(
                str(AdapterSelection(a.name, a.scale)) for a in self.loaded.adapters
            ),
            "images": str(self.loaded.projector or ""),
        }
        facts |= dict(line.split(": ", 1) for line in self.fit.lines())
        return {name: value for name, value in facts.items() if value}

    def source(self) -> dict[str, Any]:
        adapters = [
            f"{one.name}={one.path.absolute()}:{one.scale:g}" for one in self.loaded.adapters
        ]
        projector = self.loaded.projector
        found = {
            "model": str(self.loaded.header.path.absolute()),
            "adapters": adapters,
            "projector": str(projector.absolute()) if projector else None,
            "chat_template": self.loaded.chat_template,
            "raw": self.raw,
        }
        return {name: value for name, value in found.items() if value}


def opening_selection(engine: LocalEngine) -> AdapterSelection:
    """The first adapter named, with its scale; without adapters the model itself."""
    if not (adapters := engine.loaded.adapters):
        return AdapterSelection(MERGED)
    return AdapterSelection(adapters[0].name, adapters[0].scale)


def answerer(engine: Engine, selection: AdapterSelection) -> str:
    """The name of the adapter or model that answers, as it is shown and stored."""
    return str(selection) if engine.choices else engine.model
