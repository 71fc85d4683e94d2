"""The GGUF's tokenizer, in llama.cpp's own code, against transformers' one."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import ModelError, ToolchainError
from exporter.verify.report import Check
from exporter.verify.texts import SPECIAL_LOOKALIKES, TEXTS

if TYPE_CHECKING:
    from exporter.toolchain import Toolchain

LIBRARIES = "LLAMA_CPP_LIB_PATH"  # where the bindings look for them when they are imported
SPACE = "\u2581"  # as sentencepiece writes it
FEW = 3  # differences that are shown
# Of the texts: upstream's two tokenizers part over rare characters in some models, which no
# export can mend; a wrong vocabulary differs nearly everywhere.
MOST_DIFFERING = 0.05


def load_bindings(toolchain: Toolchain) -> Any:
    """llama-cpp-python's ctypes layer over the build's own libraries, silent."""
    folder = str(toolchain.folder / "python")
    if folder not in sys.path:
        sys.path.append(folder)
    before = os.environ.get(LIBRARIES)
    os.environ[LIBRARIES] = str(toolchain.library("llama").parent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import llama_cpp
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ToolchainError(
            f"cannot use llama.cpp's bindings: {error}",
            hint="rebuild it with `decant setup --force`",
        ) from error
    finally:
        os.environ.pop(LIBRARIES)
        if before is not None:
            os.environ[LIBRARIES] = before
    kind = llama_cpp.llama_log_callback
    llama_cpp.llama_log_set(ctypes.cast(SILENCE, kind), ctypes.c_void_p(0))
    return llama_cpp


def ignore(level: int, text: bytes, data: object) -> None:
    del level, text, data


# kept for as long as the library may call it
SILENCE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(ignore)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A GGUF's vocabulary in llama.cpp."""

    bindings: Any  # llama_cpp
    handle: Any  # llama_vocab *

    @property
    def size(self) -> int:
        return int(self.bindings.llama_vocab_n_tokens(self.handle))

    def encode(self, text: str, *, special: bool = False, parse: bool = True) -> list[int]:
        """Ids of a text; special adds what begins and ends one, parse knows special tokens."""
        raw = text.encode()
        room = len(raw) + 16
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self.bindings.llama_tokenize(
                self.handle, raw, len(raw), ids, room, special, parse
            )
            if count >= 0:
                return list(ids[:count])
            room = -count  # normalizing can make a text longer

    def text(self, token: int) -> str:
        """A token as the vocabulary writes it; empty for -1, which is none."""
        found = self.bindings.llama_vocab_get_text(self.handle, token) if token >= 0 else b""
        return (found or b"").decode(errors="replace")

    def special(self, name: str) -> int:
        """The id of bos, eos or pad; -1 when it has none."""
        return int(getattr(self.bindings, f"llama_vocab_{name}")(self.handle))


@contextmanager
def vocabulary(path: Path, toolchain: Toolchain) -> Iterator[Vocabulary]:
    """Load the vocabulary of a GGUF, and no weight. Raises ModelError when llama.cpp cannot."""
    bindings = load_bindings(toolchain)
    bindings.llama_backend_init()
    settings = bindings.llama_model_default_params()
    settings.vocab_only = True
    model = bindings.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        raise ModelError(
            f"llama.cpp cannot load the vocabulary of `{path}`",
            hint="`decant inspect` shows what it holds",
        )
    try:
        yield Vocabulary(bindings, bindings.llama_model_get_vocab(model))
    finally:
        bindings.llama_model_free(model)


def check_tokens(ours: Vocabulary, tokenizer: Any) -> Check:
    """Texts of many kinds cut into the same ids by llama.cpp and by transformers."""
    differing: list[str] = []
    tried = spaces = 0
    for text in (*TEXTS, *SPECIAL_LOOKALIKES):
        for special in (False, True):
            expected = tokenizer(text, add_special_tokens=special)["input_ids"]
            actual = ours.encode(text, special=special)
            tried += 1
            if (
                actual != expected
                and text.startswith(" ")
                and one_more_space(actual, expected, ours)
            ):
                spaces += 1
            elif actual != expected:
                differing.append(difference(text, actual, expected, tokenizer))
    for text in SPECIAL_LOOKALIKES:
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        actual = ours.encode(text, parse=False)
        tried += 1
        if actual != expected:
            differing.append(f"as plain text, {difference(text, actual, expected, tokenizer)}")
    shown = tuple(differing[:FEW])
    detail = f"{tried - len(differing) - spaces} of {tried} texts cut into the same tokens"
    if len(differing) > MOST_DIFFERING * tried:
        return Check("tokenizer", (f"{detail}; {shown[0]}", *shown[1:]), detail)
    if spaces:
        shown = (*shown, "llama.cpp gives a text that begins with a space one space token more")
    return Check("tokenizer", (), detail, notes=shown)


def one_more_space(actual: list[int], expected: list[int], ours: Vocabulary) -> bool:
    """Whether the ids differ only in the space that sentencepiece puts before every text.

    transformers leaves it out where there is one already; llama.cpp does as sentencepiece.
    """
    pairs = enumerate(zip(actual, expected, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), 0)
    return actual[:at] + actual[at + 1 :] == expected and ours.text(actual[at]) == SPACE


def difference(text: str, actual: list[int], expected: list[int], tokenizer: Any) -> str:
    """Where two lists of ids part."""
    at = next(
        (n for n, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b),
        min(len(actual), len(expected)),
    )
    pieces = [
        f"{ids[at : at + 4]} {tokenizer.convert_ids_to_tokens(known(ids[at : at + 4], tokenizer))}"
        for ids in (actual, expected)
    ]
    return f"{text[:40]!r} from token {at}: {pieces[0]} in the GGUF, {pieces[1]} in transformers"


def known(ids: list[int], tokenizer: Any) -> list[int]:
    return [token for token in ids if token < len(tokenizer)]
