"""Who answers a conversation here: a model in a child process. Others: `remote_engine.py`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from exporter.core.errors import (
    EngineError,
    InputError,
    TemplateRefusedError,
    UnsupportedError,
)
from exporter.core.events import Note, Report, Warn, silent
from exporter.core.machine import available_nbytes, physical_cores
from exporter.llamacpp.gpus import free_nbytes
from exporter.llamacpp.toolchain import find_toolchain
from runtime.engine.adapters import BASE
from runtime.engine.llama_server import Server, ServerSpec, lora_vector
from runtime.engine.memory_fit import Asked, Fit, fit, spread_over
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
from runtime.engine.purpose import refuse_without_answers
from runtime.engine.request_texts import Front, Fronts, said_of, unlike
from runtime.engine.selection import MERGED, Choice
from runtime.rpc.protocol import WorkerFacts, preflight

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
INPUT_TOKENS = f"{CHAT}/input_tokens"
RAW_TOKENS = 256
"""Of an answer that nothing ends: a text goes on for ever."""
RAW_LIMIT = {"max_tokens": RAW_TOKENS}


class Engine(Protocol):
    """What a conversation needs of whoever answers."""

    @property
    def model(self) -> str: ...

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that a Choice may have here."""
        ...

    @property
    def sees(self) -> bool:
        """Whether it may take images."""
        ...

    def answer(
        self, messages: Sequence[Message], settings: Mapping[str, object], choice: Choice
    ) -> Generator[Piece, None, None]: ...

    def count(self, messages: Sequence[Message], choice: Choice) -> int | None:
        """Tokens of a prompt; None where the server does not count."""
        ...

    def tokens(self, text: str) -> list[tuple[int, str | bytes]]:
        """A text's tokens: ids, and what they stand for."""
        ...

    def facts(self) -> dict[str, str]: ...

    def source(self) -> dict[str, Any]:
        """How to open the same again: model, adapters and projector, or url and model."""
        ...

    def stop(self) -> None: ...


class LocalEngine:
    """A model in a child process; started again when it has died."""

    def __init__(
        self, model: Model, asked: Asked, *, raw: bool = False, report: Report = silent
    ) -> None:
        """Find out how the model fits this machine. Raises SpaceError when it does not.

        raw: have it go on writing what was said, without its template. Raises UnsupportedError
        for a model that writes no text.
        """
        refuse_without_answers(model.header)
        self.loaded, self.asked, self.raw, self.report = model, asked, raw, report
        self.toolchain = find_toolchain()
        beside = [adapter.path for adapter in model.adapters]
        workers = self.preflight()
        backend = self.toolchain.info["backend"]
        self.fit: Fit = fit(
            model.header,
            beside + ([model.projector] if model.projector else []),
            asked,
            free=available_nbytes() + sum(sum(worker.free) for worker in workers),
            cores=physical_cores(),
            backend=backend,
            gpu=free_nbytes(self.toolchain),
        )
        self.rpc = asked.rpc and spread_over(
            asked.rpc, workers, model.header, self.fit.need, backend
        )
        for said in self.fit.warnings():
            report(Warn(said))
        self.server: Server | None = None
        self.fronts = Fronts()
        self.was_compared = False

    @property
    def spec(self) -> ServerSpec:
        return ServerSpec(
            self.loaded.header.path,
            self.fit.context,
            self.fit.threads,
            self.asked.parallel,
            tuple(adapter.path for adapter in self.loaded.adapters),
            self.loaded.projector,
            self.fit.cache_type,
            # earlier prompts would be fetched from the workers and sent back
            0 if self.rpc else self.fit.prompt_cache,
            "seq2seq" if self.loaded.is_encoder_decoder else "llama-server",
            rpc=self.rpc,
            chat=self.loaded.chat,
        )

    def preflight(self) -> tuple[WorkerFacts, ...]:
        """What the workers say, where there are any. Raises WorkerError and UnsupportedError."""
        if self.asked.rpc is None:
            return ()
        if self.loaded.is_encoder_decoder:
            raise UnsupportedError(
                f"`{self.loaded.header.path}` is an encoder-decoder, which no worker computes",
                hint="leave out --rpc",
            )
        return preflight(self.asked.rpc, self.toolchain, report=self.report)

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
        """The child, up; a new one where there is none or the last has died. Raises EngineError."""
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
        """Say which conversations are rendered otherwise than by transformers."""
        for said in unlike(server, self.loaded.chat):
            self.report(Note(f"{self.model}: {said}"))
        for adapter, own in zip(self.loaded.adapters, self.loaded.own, strict=True):
            for said in said_of(server, own):
                self.report(Note(f"{adapter.name}: {said}"))

    def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    def answer(
        self, messages: Sequence[Message], settings: Mapping[str, object], choice: Choice
    ) -> Generator[Piece, None, None]:
        """Stream the answer. Raises what `client.ask` does."""
        server = self.start()
        scales = self.scales(choice)
        front = self.front(choice)
        rest = {**settings, **(lora_vector(scales) if scales else {})}
        if not self.can_chat(choice):
            text = {"prompt": as_one_text(messages), **RAW_LIMIT, **rest}
            asked = front.ready(COMPLETIONS, text)
            yield from complete(server, asked.pop("prompt"), asked)
            return
        asked = front.ready(CHAT, {"messages": list(messages), **rest})
        yield from ask(server, asked.pop("messages"), asked)

    def can_chat(self, choice: Choice) -> bool:
        """Whether there is a template for what the choice answers."""
        asked = self.loaded.asked_as(choice.adapter, self.scales(choice))
        return not self.raw and self.loaded.can_chat_with(asked)

    def front(self, choice: Choice) -> Front:
        """How requests for a choice are made ready."""
        return self.fronts.of(self.loaded.asked_as(choice.adapter, self.scales(choice)))

    def scales(self, choice: Choice) -> list[float]:
        """Every adapter's scale: 0 but for the chosen one's."""
        if choice.adapter not in ("", BASE, *self.choices):
            raise InputError(
                f"there is no adapter {choice.adapter!r}", hint=f"there are: {self.named}"
            )
        return [choice.scale if choice.adapter == name else 0.0 for name in self.choices]

    @property
    def named(self) -> str:
        return ", ".join((BASE, *self.choices))

    def count(self, messages: Sequence[Message], choice: Choice) -> int | None:
        if not self.can_chat(choice):
            return len(self.tokens(as_one_text(messages)))
        body = {"messages": list(messages)}
        with suppress(EngineError):
            server = self.start()
            front = self.front(choice)
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
            "adapters": ", ".join(str(Choice(a.name, a.scale)) for a in self.loaded.adapters),
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


def opening_choice(engine: LocalEngine) -> Choice:
    """The adapter that was named first, with its scale; without any the model as it is."""
    adapters = engine.loaded.adapters
    return Choice(adapters[0].name, adapters[0].scale) if adapters else Choice(MERGED)


def answerer(engine: Engine, choice: Choice) -> str:
    """Who answers, as it is shown and kept."""
    return str(choice) if engine.choices else engine.model
