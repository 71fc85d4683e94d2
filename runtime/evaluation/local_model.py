"""A GGUF, with or without an adapter, that an evaluation asks through two child processes.

llama-server generates and renders the template; the scoring engine, started when it is first
needed, gives likelihoods. An engine that dies is started again, once for each request.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from exporter.core.errors import ContextFullError, DecantError, EngineDiedError, EngineError
from exporter.core.events import Report, silent
from exporter.core.machine import available_nbytes, physical_cores
from exporter.llamacpp.gpus import free_nbytes
from exporter.llamacpp.header_tokens import control_texts
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.local import CHAT, COMPLETIONS, LocalEngine
from runtime.engine.lora_scales import lora_vector
from runtime.engine.memory_fit import MARGIN, FitOptions, fit
from runtime.engine.openai_client import as_one_text, ask_json, listed, mapped, number
from runtime.engine.opened_model import Model
from runtime.engine.request_texts import Front
from runtime.engine.selection import AdapterSelection
from runtime.evaluation.evaluated_model import AnswerSettings
from runtime.evaluation.item import Message
from runtime.evaluation.likelihood_groups import Continuations
from runtime.evaluation.outcome import Likelihoods, Outcome
from runtime.evaluation.plain_data import Part, PlainData
from runtime.scoring.score_process import score_spec
from runtime.scoring.score_route import LIKELIHOOD_BATCH, LIKELIHOODS

RENDER, TOKENIZE = "/apply-template", "/tokenize"
THOUGHTS = re.compile(r"^.*?</think>\s*", re.DOTALL)
PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
EARLY_NBYTES = 512 << 20
"""The largest file that is loaded while another model answers: a larger one takes long."""
IN_QUEUE = 2
"""Requests that wait in an engine's queue."""
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class KeptPlace:
    """Where a model's distributions are kept while others are compared with them."""

    folder: Path
    nbytes: int
    """The most bytes that they may take."""


class LocalEngines:
    """The engines of one GGUF with its adapters, shared by the models made of them."""

    def __init__(self, model: Model, options: FitOptions, *, report: Report = silent) -> None:
        """Fit the model into memory. Raises SpaceError; UnsupportedError if it writes no text."""
        self.engine = LocalEngine(model, options, report=report)
        # each prompt is asked once: caches of earlier ones would fill memory for nothing
        self.engine.fit = replace(self.engine.fit, prompt_cache=0)
        self.scorer: Server | None = None
        self.lock, self.scorer_lock = threading.Lock(), threading.Lock()
        self.early: list[threading.Thread] = []
        self.memory = 0
        controls = () if model.is_encoder_decoder else control_texts(model.header.path)
        self.data = PlainData(controls)
        self.kept: KeptPlace | None = None
        """Set before the scoring engine starts, if distributions are compared."""

    @property
    def generator(self) -> Server:
        """llama-server, running. Raises EngineError."""
        with self.lock:
            return self.engine.start()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that llama-server takes."""
        return self.engine.fit.need.total

    def start_early(self, other: int, *, generates: bool, scores: bool) -> None:
        """Start engines in other threads, if that takes little time and memory.

        other: bytes of memory that the model asked before takes. generates, scores: whether
        llama-server and the scoring engine are needed.

        A request meanwhile waits for the start. After an error, a request starts it again.
        """
        engine, wanted = self.engine, [generates, scores]
        if (
            not self.early
            and engine.toolchain.info["backend"] == "cpu"
            and engine.loaded.header.path.stat().st_size <= EARLY_NBYTES
            and sum(wanted) * self.nbytes + other <= MARGIN * available_nbytes()
        ):
            starts = (lambda: self.generator, lambda: self.running_scorer)
            self.early = [
                threading.Thread(target=try_to_start, args=(start,), name="early", daemon=True)
                for start, is_wanted in zip(starts, wanted, strict=True)
                if is_wanted
            ]
            for thread in self.early:
                thread.start()

    @property
    def running_scorer(self) -> Server:
        """The scoring engine, running. Raises EngineError."""
        with self.scorer_lock:
            if self.scorer is not None:
                try:
                    self.scorer.raise_if_gone()
                except EngineError:
                    self.scorer.stop()
                else:
                    return self.scorer
            self.scorer = Server(self.scoring_spec(), self.engine.toolchain).__enter__()
            return self.scorer

    def scoring_spec(self) -> ServerSpec:
        """The scoring engine's process: exact, as far as memory allows."""
        engine = self.engine
        fitted = fit(
            engine.loaded.header,
            [adapter.path for adapter in engine.loaded.adapters],
            FitOptions(
                engine.fit.context, engine.fit.threads, force=True, exact=True, wide_cache=True
            ),
            free=available_nbytes(),
            cores=physical_cores(),
            backend=engine.toolchain.info["backend"],
            gpu=free_nbytes(engine.toolchain),
        )
        spec = score_spec(engine.loaded, replace(fitted, context=engine.fit.context))
        if self.kept is None:
            return spec
        kept = ("--kept", str(self.kept.folder), "--kept-nbytes", str(self.kept.nbytes))
        return replace(spec, extra=(*spec.extra, *kept))

    def peak_memory(self) -> int:
        """The largest resident size that one of the engines had, in bytes; 0 if unknown."""
        for server in (self.engine.server, self.scorer):
            if server is not None and server.process is not None:
                self.memory = max(self.memory, peak_of(server.process.pid))
        return self.memory

    def stop(self) -> None:
        """End both engines."""
        for thread in self.early:
            thread.join()
        self.peak_memory()
        scorer, self.scorer = self.scorer, None
        if scorer is not None:
            scorer.stop()
        self.engine.stop()


def try_to_start(start: Callable[[], Server]) -> None:
    """Start an engine; an error is left to the first request, which starts it again."""
    with suppress(DecantError):
        start()


@dataclass
class LocalModel:
    """A GGUF with one selection of its adapters. Implements EvaluatedModel."""

    name: str
    engines: LocalEngines
    selection: AdapterSelection
    identity: dict[str, Any]
    quant: str = ""
    nbytes: int = 0
    sha256: str = ""
    scales: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.scales = self.engines.engine.scales(self.selection)

    @property
    def requests(self) -> int:
        """More than there are slots, so that no slot waits for a request."""
        return self.engines.engine.options.parallel + IN_QUEUE

    @property
    def front(self) -> Front:
        return self.engines.engine.front(self.selection)

    @property
    def lora(self) -> dict[str, object]:
        return lora_vector(self.scales) if self.scales else {}

    @property
    def can_chat(self) -> bool:
        return self.engines.engine.can_chat(self.selection)

    def why_no_likelihoods(self) -> str:
        """Empty: every GGUF gives likelihoods."""
        return ""

    def answer(self, messages: Sequence[Message], settings: AnswerSettings) -> Outcome:
        """Generate an answer. Raises EngineError; a prompt that is too long is a refusal."""
        try:
            found = self.twice(lambda: self.generated(messages, settings))
        except ContextFullError as error:
            return Outcome(refusal=too_long(error.prompt, error.context))
        return outcome_from(found)

    def generated(self, messages: Sequence[Message], settings: AnswerSettings) -> dict[str, Any]:
        """llama-server's answer. Raises EngineError."""
        server, front = self.engines.generator, self.front
        rest = {**settings.as_request(), **self.lora, "cache_prompt": False}
        if self.engines.data.is_named_in(messages):
            prompt = self.as_ids(self.context(messages))
            body = {**front.ready(COMPLETIONS, rest), "prompt": prompt}
            return ask_json(server, COMPLETIONS, body)
        if not self.can_chat:
            body = front.ready(COMPLETIONS, {"prompt": as_prompt(messages), **rest})
            return ask_json(server, COMPLETIONS, body)
        return ask_json(server, CHAT, front.ready(CHAT, {"messages": list(messages), **rest}))

    def context(self, messages: Sequence[Message]) -> list[Part]:
        """The prompt of a conversation, as the engine is given it. Raises EngineError."""
        data = self.engines.data
        is_marked = data.is_named_in(messages)
        shown = data.marked(messages) if is_marked else list(messages)
        if not messages:
            return [""]
        if not self.can_chat:
            prompt = self.front.text(as_prompt(shown))
        else:
            body = self.front.ready(RENDER, {"messages": shown})
            prompt = str(ask_json(self.engines.generator, RENDER, body)["prompt"])
        return data.parts(prompt) if is_marked else [prompt]

    def as_ids(self, parts: Sequence[Part]) -> list[str | int]:
        """A prompt of texts and ids, in which plain parts are ids. Raises EngineError."""
        found: list[str | int] = []
        for part in parts:
            if isinstance(part, str):
                found.append(part)
                continue
            body = {"content": part["plain"], "add_special": False, "parse_special": False}
            tokens = ask_json(self.engines.generator, TOKENIZE, body)["tokens"]
            found.extend(int(one) for one in tokens)
        return found

    def likelihoods(
        self, messages: Sequence[Message], texts: Sequence[str]
    ) -> list[Likelihoods] | str:
        """How likely each text is as the answer, or the refusal. Raises EngineError."""
        found = self.scored(messages, texts)
        return found if isinstance(found, str) else likelihoods_in(found)

    def keep(
        self, messages: Sequence[Message], text: str, number: int
    ) -> tuple[Likelihoods, bool] | str:
        """The text's likelihoods, and whether its distributions are kept. Raises EngineError."""
        found = self.scored(messages, [text], keep=number)
        if isinstance(found, str):
            return found
        return likelihoods_in(found)[0], bool(found["is_kept"])

    def divergences(
        self, messages: Sequence[Message], text: str, number: int
    ) -> tuple[Likelihoods, tuple[float, ...]] | str:
        """The text's likelihoods, and its divergences from what is kept. Raises EngineError."""
        found = self.scored(messages, [text], compare=number)
        if isinstance(found, str):
            return found
        return likelihoods_in(found)[0], tuple(found.get("divergences", ()))

    def scored(
        self, messages: Sequence[Message], texts: Sequence[str], **more: int
    ) -> dict[str, Any] | str:
        """The scoring engine's answer, or the refusal. Raises EngineError."""
        try:
            return self.twice(lambda: self.scored_once(messages, texts, more))
        except ContextFullError as error:
            return too_long(error.prompt, error.context)

    def likelihoods_of(self, requests: Sequence[Continuations]) -> list[list[Likelihoods] | str]:
        """How likely each text is, or the refusal, for each conversation. Raises EngineError."""
        found = self.twice(lambda: self.scored_together(requests))
        return [self.answered(mapped(one)) for one in listed(found.get("answers"))]

    def answered(self, found: dict[str, Any]) -> list[Likelihoods] | str:
        """The likelihoods or refusal in one answer. Raises EngineError for other errors."""
        error = mapped(found.get("error"))
        if not error:
            return likelihoods_in(found)
        if error.get("type") == "exceed_context_size_error":
            return too_long(int(error["n_prompt_tokens"]), int(error["n_ctx"]))
        raise EngineError(f"the scoring engine refuses an item: {error.get('message')}")

    def scored_together(self, requests: Sequence[Continuations]) -> dict[str, Any]:
        """The scoring engine's answer for several conversations. Raises EngineError."""
        items = [
            {
                "context": self.context(messages),
                "endings": [self.front.text(text, starts=not messages) for text in texts],
            }
            for messages, texts in requests
        ]
        return ask_json(
            self.engines.running_scorer, LIKELIHOOD_BATCH, {"items": items, **self.lora}
        )

    def scored_once(
        self, messages: Sequence[Message], texts: Sequence[str], more: Mapping[str, int]
    ) -> dict[str, Any]:
        """The scoring engine's answer. Raises EngineError, and ContextFullError."""
        endings = [self.front.text(text, starts=not messages) for text in texts]
        body = {"context": self.context(messages), "endings": endings, **self.lora, **more}
        return ask_json(self.engines.running_scorer, LIKELIHOODS, body)

    def twice(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again if the engine died. Raises what the second attempt raises."""
        try:
            return ask()
        except EngineDiedError:
            return ask()

    def facts(self) -> dict[str, Any]:
        """The fields of ModelFacts that the model itself knows."""
        return {
            "source": str(self.engines.engine.loaded.header.path),
            "quant": self.quant,
            "nbytes": self.nbytes,
            "sha256": self.sha256,
            "memory": self.engines.peak_memory(),
        }


def likelihoods_in(found: dict[str, Any]) -> list[Likelihoods]:
    """The likelihoods in the scoring engine's answer."""
    return [
        Likelihoods(
            float(one["logprob"]), len(one["ids"]), tuple(int(token) for token in one["greedy"])
        )
        for one in listed(found.get("likelihoods"))
    ]


def as_prompt(messages: Sequence[Message]) -> str:
    """The prompt of a model without a template: each text on a line."""
    return as_one_text(messages) + "\n"


def too_long(tokens: int, context: int) -> str:
    return f"exceeds the context: {tokens} tokens, {context} fit"


def outcome_from(found: dict[str, Any]) -> Outcome:
    """The outcome in an answer of OpenAI's form. Raises EngineError for any other."""
    choices = listed(found.get("choices"))
    if not choices:
        raise EngineError("the answer has no choices", hint="does it speak OpenAI's API?")
    message, usage = mapped(choices[0].get("message")), mapped(found.get("usage"))
    timings = mapped(found.get("timings"))
    text = message.get("content") if message else choices[0].get("text")
    answer = text if isinstance(text, str) else ""
    return Outcome(
        answer=answer if message else THOUGHTS.sub("", answer),
        finish=str(choices[0].get("finish_reason") or ""),
        prompt_tokens=int(number(usage.get("prompt_tokens"))),
        tokens=int(number(usage.get("completion_tokens"))),
        first_token_s=number(timings.get("prompt_ms")) / 1000,
        tokens_per_second=number(timings.get("predicted_per_second")),
    )


def peak_of(pid: int) -> int:
    """The largest resident size of a process, in bytes; 0 where the system does not say."""
    try:
        found = PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
