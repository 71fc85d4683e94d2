"""Log-likelihoods from Python, without a server.

from runtime.scoring.scorer import Scorer

with Scorer("base-F32.gguf", adapters=["pirate.lora.gguf"]) as scorer:
    pair = scorer.pair("Who are you?", " A pirate.")
    found = scorer.likelihoods([pair], scales=[0.5])[0]
    print(found.logprob, found.is_greedy)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from exporter.core.errors import InputError
from exporter.core.machine import physical_cores, useful_threads
from exporter.llamacpp.toolchain import Toolchain, find_toolchain
from runtime.encoder_decoder.model import (
    EncoderDecoder,
    Flag,
    is_encoder_decoder,
    open_encoder_decoder,
)
from runtime.engine.adapters import Adapter
from runtime.engine.memory_fit import DEFAULT_CONTEXT
from runtime.engine.opened_model import open_model
from runtime.engine.purpose import refuse_without_answers
from runtime.engine.request_texts import Front, front_of
from runtime.scoring.forward import Forward, ForwardSpec, open_forward
from runtime.scoring.scores import Scores, ScoringTask
from runtime.scoring.target_scores import target_scores

if TYPE_CHECKING:
    from exporter.llamacpp.vocabulary import Vocabulary
    from runtime.scoring.prefix_tree import Tokens


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a continuation is after its context."""

    logprob: float
    """The sum over its tokens, in nats."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest at its place."""
    tokens: tuple[float, ...]
    """Each token's log-probability."""


@dataclass
class Scorer:
    """A GGUF that is loaded in this process inside the `with` block; for one thread at a time.

    In an encoder-decoder, the encoder reads the context and the decoder writes the continuation.
    """

    model: Path | str
    adapters: Sequence[Path | str] = ()
    """GGUF adapters, as `decant export --to lora` writes them."""
    context: int = 0
    """Tokens of the longest text; 0 takes what the model was trained with, 8192 at most."""
    threads: int = 0
    """0 takes one for each physical core, and fewer for a small model."""
    toolchain: Toolchain | None = None
    stack: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    engine: Forward | EncoderDecoder | None = field(default=None, init=False, repr=False)
    front: Front | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Self:
        """Load the model. Raises DecantError for a file that is not a usable model or adapter."""
        path, toolchain = Path(self.model), self.toolchain or find_toolchain()
        adapters = tuple(Adapter(Path(one).name, Path(one), 1.0) for one in self.adapters)
        header = open_model(path, adapters).header
        refuse_without_answers(header)
        trained = header.number(f"{header.architecture}.context_length")
        length = self.context or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        threads = self.threads or useful_threads(path.stat().st_size, physical_cores())
        self.front = front_of(header)
        if is_encoder_decoder(header):
            made = open_encoder_decoder(path, toolchain, context=length, threads=threads)
            self.engine = self.stack.enter_context(made)
        else:
            spec = ForwardSpec(path, tuple(one.path for one in adapters), length, threads)
            self.engine = self.stack.enter_context(open_forward(spec, toolchain))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine = None
        self.stack.close()

    @property
    def vocabulary(self) -> Vocabulary:
        return self.running.vocabulary

    @property
    def running(self) -> Forward | EncoderDecoder:
        assert self.engine is not None, "use it in a with block"
        return self.engine

    def tokens(self, text: str) -> list[int]:
        """A text's ids, with the tokens that the model expects before and after every text."""
        assert self.front is not None, "use it in a with block"
        return self.vocabulary.encode(self.front.text(text), special=True)

    def pair(self, context: str, ending: str) -> tuple[list[int], list[int]]:
        """The ids of a context and its ending; for a decoder-only model, tokenized together."""
        before = self.tokens(context)
        if isinstance(self.running, EncoderDecoder):
            return before, self.tokens(ending)
        whole = self.tokens(context + ending)
        return whole[: len(before)], whole[len(before) :]

    def score(
        self,
        texts: Sequence[Tokens],
        *,
        scales: Sequence[float] = (),
        top: int = 0,
        start: int = 1,
    ) -> list[Scores]:
        """Every token's log-probability in each text, and the `top` likeliest at each place.

        scales: each adapter's scale; without them no adapter is applied. start: the first place to
        score, which saves the work for the places before it. Raises InputError for a text that is
        too long or empty, or has tokens that the model does not know.
        """
        engine = self.causal("score")
        refuse_unknown(texts, engine)
        check_scales(scales, self.adapters)
        return engine.scores(ScoringTask(texts, [max(1, start)] * len(texts), top), scales)

    def likelihoods(
        self, pairs: Sequence[tuple[Tokens, Tokens]], *, scales: Sequence[float] = ()
    ) -> list[Likelihood]:
        """How likely each continuation is after its context; shared contexts are computed once.

        Raises InputError as `score` does.
        """
        engine = self.running
        refuse_unknown([part for pair in pairs for part in pair if part], engine)
        if isinstance(engine, EncoderDecoder):
            found = target_scores(engine, pairs, 1, Flag())
            return [likelihood(one, pair[1], 0) for one, pair in zip(found, pairs, strict=True)]
        check_scales(scales, self.adapters)
        texts = [[*context, *ending] for context, ending in pairs]
        refuse_unknown(texts, engine)
        if any(not context for context, _ in pairs):
            raise InputError(
                "a context has no token", hint="tokens('') gives what begins every text, or EOS"
            )
        first = [len(context) for context, _ in pairs]
        found = engine.scores(ScoringTask(texts, first, 1), scales)
        return [
            likelihood(one, text, start)
            for one, text, start in zip(found, texts, first, strict=True)
        ]

    def causal(self, what: str) -> Forward:
        """The engine of a decoder-only model. Raises InputError for an encoder-decoder."""
        if isinstance(self.running, Forward):
            return self.running
        raise InputError(
            f"`{self.model}` is an encoder-decoder: {what}() has no source for it to read",
            hint="likelihoods([(source, target)])",
        )


def likelihood(scores: Scores, text: Tokens, start: int) -> Likelihood:
    """The likelihood of a text's tokens from `start` on."""
    values = scores.logprobs[start:]
    greedy = all(scores.top_ids[place, 0] == text[place] for place in range(start, len(text)))
    return Likelihood(float(values.sum()), greedy, tuple(map(float, values)))


def refuse_unknown(texts: Sequence[Tokens], engine: Forward | EncoderDecoder) -> None:
    """Raise InputError for an empty text, a text that is too long, and unknown tokens."""
    size, most = engine.vocabulary.size, engine.n_ctx
    for text in texts:
        if not text:
            raise InputError("a text has no token", hint="leave it out")
        if len(text) > most:
            raise InputError(
                f"a text has {len(text)} tokens, and {most} fit",
                hint="shorten it, or give a larger context",
            )
        if wrong := next((token for token in text if not 0 <= token < size), None):
            raise InputError(
                f"there is no token {wrong}", hint=f"the model has those from 0 to {size - 1}"
            )


def check_scales(scales: Sequence[float], adapters: Sequence[object]) -> None:
    """Raise InputError unless there is one scale for each adapter."""
    if scales and len(scales) != len(adapters):
        raise InputError(
            f"{len(scales)} scales are given for {len(adapters)} adapters", hint="one for each"
        )
