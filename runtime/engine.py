"""Who answers a conversation: a model in a child process, or a server elsewhere."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from exporter.core.controls import without_controls
from exporter.core.errors import EngineError, InputError, ModelError, UnsupportedError
from exporter.core.events import Note, Report, Warn, silent
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.core.machine import available_nbytes, physical_cores
from exporter.gpus import free_nbytes
from exporter.store import StoredModel, refuse_adapter
from exporter.toolchain import find_toolchain
from runtime.adapters import BASE, Adapter, check_adapter
from runtime.chat_format import AS_IT_IS, ChatFormat, chat_format, templates_of
from runtime.child import Server, ServerSpec, lora_vector
from runtime.client import Message, Piece, ask, ask_json, complete, get_json, listed
from runtime.fit import LAYERS_KEPT, Asked, Fit, fit, spread_over
from runtime.front import PLAIN, front_of, unlike
from runtime.remote import Remote
from runtime.rpc import WorkerFacts, preflight
from runtime.seq2seq.model import is_encoder_decoder
from runtime.session import MERGED, Choice

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
INPUT_TOKENS = f"{CHAT}/input_tokens"


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

    def count(self, messages: Sequence[Message]) -> int | None:
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


@dataclass(frozen=True, slots=True)
class Model:
    """A GGUF and what is loaded with it."""

    header: GGUFFile
    adapters: tuple[Adapter, ...] = ()
    projector: Path | None = None
    chat_template: str | None = None
    """A template in place of the file's own."""

    @property
    def name(self) -> str:
        return StoredModel(self.header.path).full_name

    @property
    def is_encoder_decoder(self) -> bool:
        return is_encoder_decoder(self.header)

    @property
    def can_chat(self) -> bool:
        """Whether it has a template for conversations; one that was never taught any has none."""
        return bool(self.chat_template or templates_of(self.header)[0]) or self.is_encoder_decoder

    @property
    def chat(self) -> ChatFormat:
        """How its conversations are rendered; takes a moment when it is first asked for."""
        if self.is_encoder_decoder:
            return AS_IT_IS
        return chat_format(self.header, self.chat_template)


def open_model(
    path: Path, adapters: tuple[Adapter, ...] = (), projector: Path | None = None
) -> Model:
    """Read headers and see that they belong together; no weight is loaded.

    A projector beside the model, as decant and others name it, is found by itself. Raises
    ModelError and UnsupportedError.
    """
    header = read_gguf(path, keep_items=LAYERS_KEPT)
    refuse_adapter(header)
    if header.architecture == "clip":
        raise ModelError(
            f"`{path}` is a projector: it lets a model see, and answers nothing",
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
    return model


def find_projector(model: GGUFFile) -> Path | None:
    """The projector beside a model: by its name, or the only one there, if it fits."""
    path = model.path
    stored = StoredModel(path)
    names = (f"mmproj-{stored.name}.gguf", f"mmproj-{stored.full_name}.gguf")
    named = [path.with_name(name) for name in names if path.with_name(name).exists()]
    beside = named[:1] or list(path.parent.glob("mmproj*.gguf"))
    width = model.number(f"{model.architecture}.embedding_length")
    if len(beside) != 1:
        return None
    try:
        projector = read_gguf(beside[0])
    except ModelError:
        return None
    return beside[0] if projector.number("clip.vision.projection_dim") == width else None


class LocalEngine:
    """A model in a child process; started again when it has died."""

    def __init__(self, model: Model, asked: Asked, *, report: Report = silent) -> None:
        """Find out how the model fits this machine. Raises SpaceError when it does not."""
        self.loaded, self.asked, self.report = model, asked, report
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
        self.front = PLAIN
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
        spec = self.spec
        self.front = front_of(self.loaded.header, spec.chat)
        server = Server(spec, self.toolchain, report=self.report)
        self.server = server.__enter__()
        if not self.was_compared:
            self.was_compared = True
            for said in unlike(server, spec.chat):
                self.report(Note(f"{self.model}: {said}"))
        return server

    def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            server.stop()

    def answer(
        self, messages: Sequence[Message], settings: Mapping[str, object], choice: Choice
    ) -> Generator[Piece, None, None]:
        """Stream the answer. Raises what `client.ask` does."""
        server = self.start()
        rest = {**settings, **self.vector(choice)}
        if not self.loaded.can_chat:
            asked = self.front.ready(COMPLETIONS, {"prompt": as_one_text(messages)})
            yield from complete(server, asked["prompt"], rest)
            return
        asked = self.front.ready(CHAT, {"messages": list(messages), **rest})
        yield from ask(server, asked.pop("messages"), asked)

    def vector(self, choice: Choice) -> dict[str, object]:
        """Every adapter's scale: 0 but for the chosen one's."""
        if choice.adapter not in ("", BASE, *self.choices):
            raise InputError(
                f"there is no adapter {choice.adapter!r}", hint=f"there are: {self.named}"
            )
        if not self.choices:
            return {}
        scales = [choice.scale if choice.adapter == name else 0.0 for name in self.choices]
        return lora_vector(scales)

    @property
    def named(self) -> str:
        return ", ".join((BASE, *self.choices))

    def count(self, messages: Sequence[Message]) -> int | None:
        if not self.loaded.can_chat:
            return len(self.tokens(as_one_text(messages)))
        body = {"messages": list(messages)}
        with suppress(EngineError):
            server = self.start()
            found = ask_json(server, INPUT_TOKENS, self.front.ready(INPUT_TOKENS, body))
            return int(found["input_tokens"])
        return None

    def tokens(self, text: str) -> list[tuple[int, str | bytes]]:
        server = self.start()
        body = {"content": text, "with_pieces": True, "add_special": False}
        found = ask_json(server, "/tokenize", self.front.ready("/tokenize", body))
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
        }
        return {name: value for name, value in found.items() if value}


def as_one_text(messages: Sequence[Message]) -> str:
    """What a base model goes on writing: all that was said, a line each."""
    return "\n".join(
        content if isinstance(content, str) else texts_of(content)
        for message in messages
        if (content := message.get("content"))
    )


def texts_of(parts: Sequence[Mapping[str, Any]]) -> str:
    return "".join(str(part.get("text", "")) for part in parts)


def read_tokens(found: Mapping[str, Any]) -> list[tuple[int, str | bytes]]:
    """What /tokenize answers; bytes that are no whole character come as a list of numbers."""
    try:
        pairs = [(int(token["id"]), token["piece"]) for token in found["tokens"]]
        return [(n, bytes(piece) if isinstance(piece, list) else str(piece)) for n, piece in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(
            "the server does not say which tokens there are", hint="`decant tokens` asks a GGUF"
        ) from error


class RemoteEngine:
    """A model of a server elsewhere."""

    def __init__(self, remote: Remote, model: str | None) -> None:
        """Talk to `model`, or to the first that the server lists. Raises EngineError."""
        self.remote = remote
        ids = [one.get("id") for one in listed(get_json(remote, "/v1/models").get("data"))]
        names = tuple(without_controls(one) for one in ids if isinstance(one, str))
        if model is None and not names:
            raise EngineError(f"{remote} lists no model", hint="name one: --model NAME")
        if model is not None and names and model not in names:
            raise EngineError(
                f"{remote} has no model {model!r}", hint=f"it lists {', '.join(names[:10])}"
            )
        self.name, self.names = model or names[0], names

    @property
    def model(self) -> str:
        return self.name

    @property
    def choices(self) -> tuple[str, ...]:
        return ()

    @property
    def sees(self) -> bool:
        return True

    def answer(
        self, messages: Sequence[Message], settings: Mapping[str, object], choice: Choice
    ) -> Generator[Piece, None, None]:
        """Stream the answer. Raises what `client.ask` does."""
        del choice
        yield from ask(self.remote, messages, {"model": self.name, **settings})

    def count(self, messages: Sequence[Message]) -> int | None:
        del messages
        return None

    def tokens(self, text: str) -> list[tuple[int, str | bytes]]:
        body = {"content": text, "with_pieces": True, "add_special": False, "model": self.name}
        found = ask_json(self.remote, "/tokenize", body)
        return read_tokens(found)

    def facts(self) -> dict[str, str]:
        return {"server": str(self.remote), "model": self.name, "models": ", ".join(self.names)}

    def source(self) -> dict[str, Any]:
        return {"url": str(self.remote), "remote_model": self.name}

    def stop(self) -> None:
        """Nothing runs here."""


def opening_choice(engine: LocalEngine) -> Choice:
    """The adapter that was named first, with its scale; without any the model as it is."""
    adapters = engine.loaded.adapters
    return Choice(adapters[0].name, adapters[0].scale) if adapters else Choice(MERGED)


def answerer(engine: Engine, choice: Choice) -> str:
    """Who answers, as it is shown and kept."""
    return str(choice) if engine.choices else engine.model
