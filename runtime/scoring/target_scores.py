"""The scores of given targets in an encoder-decoder that has read a source."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from exporter.core.errors import EngineError
from runtime.encoder_decoder.model import EncoderDecoder, Flag, computed
from runtime.scoring.forward import StoppedError
from runtime.scoring.log_softmax import reduced
from runtime.scoring.scores import Scores, as_array, empty_scores

if TYPE_CHECKING:
    import numpy as np

    from runtime.scoring.prefix_tree import Tokens


def target_scores(
    model: EncoderDecoder,
    pairs: Sequence[tuple[Tokens, Tokens]],
    top: int = 0,
    stop: Flag | None = None,
    take: Callable[[np.ndarray[Any, Any]], None] | None = None,
) -> list[Scores]:
    """The scores of each target after its source; a source that several share is read once.

    take: is called with the logits of a single target's places, (tokens, vocabulary).

    A target's first token has a log-probability, too: it follows the token by which the decoder
    begins. Raises StoppedError once `stop` is set, EngineError when llama.cpp cannot compute.
    """
    lib, stop = model.bindings, stop or Flag()
    is_set = ctypes.cast(ctypes.CDLL(None).strlen, lib.ggml_abort_callback)
    lib.llama_set_abort_callback(model.context, is_set, stop.address)
    found: dict[int, Scores] = {}
    read: Tokens | None = None
    try:
        for number in sorted(range(len(pairs)), key=lambda number: pairs[number][0]):
            source, target = pairs[number]
            if source != read:
                lib.llama_memory_clear(lib.llama_get_memory(model.context), True)
                if not computed(model, lib.llama_encode, source, stop):
                    raise StoppedError
                read = source
            found[number] = one_target(model, target, top, stop, take)
    finally:
        lib.llama_set_abort_callback(model.context, lib.ggml_abort_callback(), None)
    return [found[number] for number in range(len(pairs))]


def one_target(
    model: EncoderDecoder,
    target: Tokens,
    top: int,
    stop: Flag,
    take: Callable[[np.ndarray[Any, Any]], None] | None,
) -> Scores:
    """The scores of a target after the last source. Raises EngineError and StoppedError.

    take: is called with the logits of its places, (tokens, vocabulary).
    """
    import numpy as np

    scores = empty_scores(len(target), top)
    if not target:
        return scores
    lib, count = model.bindings, len(target)
    lib.llama_memory_clear(lib.llama_get_memory(model.context), True)
    batch = lib.llama_batch_init(count, 0, 1)
    try:
        batch.n_tokens = count
        for position, token in enumerate((model.start, *target[:-1])):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
            batch.logits[position] = 1
        status = lib.llama_decode(model.context, batch)
    finally:
        lib.llama_batch_free(batch)
    if stop.is_set:
        raise StoppedError
    if status:
        raise EngineError(f"llama.cpp ended with {status} on {count} tokens")
    rows = as_array(lib.llama_get_logits(model.context), (count, model.vocabulary.size))
    scaled: np.ndarray[Any, Any] = rows * np.float32(model.logit_scale)
    if take is not None:
        take(scaled)
    part = reduced(scaled, np.arange(count), np.array(target), top)
    scores.logprobs[:] = part.values
    scores.top_ids[:-1], scores.top_logprobs[:-1] = part.top_ids, part.top_values
    return scores
