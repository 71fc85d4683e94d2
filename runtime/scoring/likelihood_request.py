"""A request for how likely some texts are after one context, and the answer to it.

A single text's distributions can be kept in the engine's folder, or compared with those that
another model has kept there.

The context is tokenized once, and computed once for all texts after it. Parts of it can be marked
as plain text: there, the name of a special token stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.core.errors import UnsupportedError
from runtime.encoder_decoder.model import EncoderDecoder, Flag
from runtime.encoder_decoder.openai import Fields, Json, wrong
from runtime.scoring.divergence import KeptFolder, KeptReader, KeptWriter
from runtime.scoring.score_request import Engine, scales_of
from runtime.scoring.scores import Scores, ScoringTask
from runtime.scoring.target_scores import target_scores

if TYPE_CHECKING:
    from exporter.llamacpp.vocabulary import Vocabulary

PLAIN = "plain"
"""The key of a part in which no special token is recognized."""


@dataclass(frozen=True, slots=True)
class LikelihoodRequest:
    """The tokens of each text that may follow the context."""

    pairs: Sequence[tuple[list[int], list[int]]]
    """Each context with its text, tokenized together."""
    scales: Sequence[float]
    keep: int | None = None
    """The number under which the distributions are kept."""
    compare: int | None = None
    """The number of the kept distributions that the model's are compared with."""


@dataclass(frozen=True, slots=True)
class EndingCuts:
    """Texts tokenized alone, each once for all contexts before it."""

    vocabulary: Vocabulary
    known: dict[str, tuple[list[int], bool]] = field(default_factory=dict)

    def of(self, ending: str) -> tuple[list[int], bool]:
        """The tokens without special ones, and whether the text names a special token."""
        if ending not in self.known:
            alone = self.vocabulary.encode(ending, parse=False)
            self.known[ending] = alone, self.vocabulary.encode(ending) != alone
        return self.known[ending]


def read_likelihood_request(
    fields: Fields, engine: Engine, cuts: EndingCuts | None = None
) -> LikelihoodRequest:
    """Read a request's body. Raises RefusedError. cuts: endings tokenized before."""
    parts, endings = fields.body.get("context"), fields.body.get("endings")
    if not isinstance(parts, list) or not all(is_part(part) for part in parts):
        raise wrong('`context` must be a list of texts and {"plain": text}')
    if not isinstance(endings, list) or not all(isinstance(one, str) for one in endings):
        raise wrong("`endings` must be a list of texts")
    vocabulary = engine.vocabulary
    context = encode_parts(parts, vocabulary)
    if isinstance(engine, EncoderDecoder):
        pairs = [(context, vocabulary.encode(one, special=True, parse=False)) for one in endings]
    elif not context:  # the first token follows nothing, so it has no likelihood
        cut = [vocabulary.encode(one, parse=False) for one in endings]
        pairs = [(ids[:1], ids[1:]) for ids in cut]
    else:
        pairs = encode_pairs(parts, context, endings, cuts or EndingCuts(vocabulary))
    for ending, (_, ids) in zip(endings, pairs, strict=True):
        if not ids:
            raise wrong(f"{ending!r} has no token after this context")
    longest = max((len(before) + len(after) for before, after in pairs), default=0)
    if longest > engine.n_ctx:
        raise wrong(
            f"the text has {longest} tokens and {engine.n_ctx} fit",
            type="exceed_context_size_error",
            n_prompt_tokens=longest,
            n_ctx=engine.n_ctx,
        )
    return LikelihoodRequest(
        pairs, scales_of(fields), *(kept_number(fields, name) for name in ("keep", "compare"))
    )


def kept_number(fields: Fields, name: str) -> int | None:
    """The number in a field; None without it. Raises RefusedError if there are several texts."""
    if name not in fields.body:
        return None
    if len(fields.body["endings"]) != 1:
        raise wrong(f"`{name}` goes with one ending")
    return fields.integer(name, 0, 0)


def is_part(part: Any) -> bool:
    return isinstance(part.get(PLAIN) if isinstance(part, dict) else part, str)


def encode_parts(parts: Sequence[Any], vocabulary: Vocabulary) -> list[int]:
    """The tokens of a context: the first part begins as every text of the model does."""
    ids: list[int] = []
    for place, part in enumerate(parts):
        if isinstance(part, str):
            ids += vocabulary.encode(part, special=place == 0)
        else:
            ids += vocabulary.encode(part[PLAIN], special=place == 0, parse=False)
    return ids


def encode_pairs(
    parts: Sequence[Any], context: list[int], endings: Sequence[str], cuts: EndingCuts
) -> list[tuple[list[int], list[int]]]:
    """The tokens of a context and of each text after it; no special token is recognized in a text.

    A text is tokenized together with the context's last part, as it is in a conversation.
    """
    vocabulary, last = cuts.vocabulary, parts[-1]
    text, parse = (last, True) if isinstance(last, str) else (last[PLAIN], False)
    begins = len(parts) == 1
    before = vocabulary.encode(text, special=begins, parse=parse)
    start, count = context[: len(context) - len(before)], len(before)
    found = []
    for ending in endings:
        alone, is_special = cuts.of(ending)
        if is_special:
            found.append((context, alone))
            continue
        whole = vocabulary.encode(text + ending, special=begins, parse=parse)
        found.append((start + whole[:count], whole[count:]))
    return found


def answer_likelihoods(
    engine: Engine, request: LikelihoodRequest, stop: Flag, folder: KeptFolder | None = None
) -> Json:
    """The answer to a request. Raises StoppedError, EngineError and UnsupportedError.

    folder: where distributions are kept; a request that keeps or compares them needs it.
    """
    with ExitStack() as stack:
        sink = sink_of(engine, request, folder)
        if sink is not None:
            stack.enter_context(sink)
        found = scored(engine, request, stop, sink)
    answer: Json = {
        "likelihoods": [
            {
                "logprob": float(scores.logprobs[start:].sum()),
                "greedy": [int(one) for one in scores.top_ids[start : start + len(ids), 0]],
                "ids": ids,
            }
            for (scores, start), (_, ids) in zip(found, request.pairs, strict=True)
        ]
    }
    if request.keep is not None:
        answer["is_kept"] = isinstance(sink, KeptWriter) and sink.is_whole
    if isinstance(sink, KeptReader):
        answer["divergences"] = sink.found
    return answer


def sink_of(
    engine: Engine, request: LikelihoodRequest, folder: KeptFolder | None
) -> KeptWriter | KeptReader | None:
    """The file that takes the logits; None if the request names none, or the folder has none.

    Raises UnsupportedError if the request names one and there is no folder.
    """
    if request.keep is None and request.compare is None:
        return None
    if folder is None:
        raise UnsupportedError("this engine keeps no distributions", hint="start it with --kept")
    _, ids = request.pairs[0]
    if request.keep is not None:
        return folder.writer(request.keep, ids, engine.vocabulary.size)
    assert request.compare is not None
    return folder.reader(request.compare, ids, engine.vocabulary.size)


def scored(
    engine: Engine, request: LikelihoodRequest, stop: Flag, sink: KeptWriter | KeptReader | None
) -> list[tuple[Scores, int]]:
    """The scores of each text with its context, and where the text begins in them."""
    take = None if sink is None else sink.take
    if isinstance(engine, EncoderDecoder):
        return [(one, 0) for one in target_scores(engine, request.pairs, 1, stop, take)]
    texts = [[*before, *after] for before, after in request.pairs]
    first = [len(before) for before, _ in request.pairs]
    found = engine.scores(ScoringTask(texts, first, 1, take=take), request.scales, stop)
    return list(zip(found, first, strict=True))
