"""The token keys that the converter wrote last, for a second conversion of the same files.

An export lays the model out for its files, and again to verify them. The converter takes a second
to read a tokenizer.json of 128,000 tokens and as many merges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from exporter.convert.config_prefetch import PLACE
from exporter.inputs.tokenizer_memo import fingerprint


class VocabularyMemo:
    """The keys of the last model, with their origin.

    The origin is the converter's classes, the content of the tokenizer's folder, and the settings.
    """

    def __init__(self) -> None:
        self.last: tuple[Any, dict[str, Any]] | None = None

    def write(self, model: Any, set_vocab: Callable[[Any], None]) -> None:
        """Write the token keys of the converter's `model` as its `set_vocab` does.

        Its keys are kept unless it changes the model itself too. Raises what `set_vocab` raises.
        """
        held = model.gguf_writer.kv_data[0]
        content, _ = fingerprint(model.dir_model)
        classes = [str(kind) for kind in type(model).__mro__]  # the first may be made each time
        settings = copy.deepcopy(model.hparams)
        made_from = (classes, content, {**settings, PLACE: None})
        if self.last is not None and self.last[0] == made_from:
            held.update({key: copied(value) for key, value in self.last[1].items()})
            return
        before, state = set(held), dict(vars(model))
        set_vocab(model)
        is_as_before = vars(model).keys() == state.keys() and all(
            value is state[name] for name, value in vars(model).items()
        )
        keys = {key: copied(value) for key, value in held.items() if key not in before}
        self.last = (made_from, keys) if is_as_before and model.hparams == settings else None


def copied(value: Any) -> Any:
    """A gguf value that shares no list with another."""
    return replace(value, value=list(value.value)) if isinstance(value.value, list) else value


MEMO = VocabularyMemo()
