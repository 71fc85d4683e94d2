"""The token keys that the converter wrote last, for a second conversion of the same files.

An export lays the model out for its files, and again to verify them. The converter takes a second
to read a tokenizer.json of 128,000 tokens and as many merges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from exporter.convert.config_prefetch import read_from
from exporter.core.last_value import LastValue

Origin: TypeAlias = tuple[list[str], str, dict[str, Any]]
"""The converter's classes, the hash of the tokenizer's files, and the settings."""


class VocabularyMemo(LastValue[Origin, dict[str, Any]]):
    """The token keys of the last model, by their origin."""

    def write(self, model: Any, set_vocab: Callable[[Any], None], content: str) -> bool:
        """Write the token keys of the converter's `model` as its `set_vocab` does.

        content: the hash of the tokenizer's files. Returns false if `set_vocab` changes the model
        itself too; the keys are then not kept. Raises what `set_vocab` raises.
        """
        held = model.gguf_writer.kv_data[0]
        classes = [str(kind) for kind in type(model).__mro__]  # the first may be a new class
        settings = copy.deepcopy(model.hparams)
        origin = classes, content, read_from("", settings)
        keys = self.get(origin)
        if keys is not None:
            held.update({key: copied(value) for key, value in keys.items()})
            return True
        self.forget()
        before, state = set(held), dict(vars(model))
        set_vocab(model)
        is_as_before = vars(model).keys() == state.keys() and all(
            value is state[name] for name, value in vars(model).items()
        )
        if not is_as_before or model.hparams != settings:
            return False
        self.keep(origin, {key: copied(value) for key, value in held.items() if key not in before})
        return True


def copied(value: Any) -> Any:
    """A gguf value that shares no list with another."""
    return replace(value, value=list(value.value)) if isinstance(value.value, list) else value


MEMO = VocabularyMemo()
