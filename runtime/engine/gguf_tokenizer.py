"""Tokenizes a text or a chat in this process, from a GGUF's vocabulary without its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from exporter.core.errors import ModelError
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.inputs.chat_template import Clock, IrregularError, Messages, Template
from exporter.inputs.template_process import refuse_runaway
from exporter.llamacpp.header_tokens import special_tokens
from exporter.llamacpp.normalizer import FIRST, NORMALIZER, SPACE_PREFIX, normalizer, spaced
from exporter.llamacpp.toolchain import Toolchain
from exporter.llamacpp.vocabulary import Vocabulary, vocabulary
from exporter.model_store import refuse_adapter
from runtime.engine.own_template import OwnTemplate
from runtime.engine.request_texts import front_of

TEMPLATE = "tokenizer.chat_template"
NO_VOCABULARY = (None, "none", "no_vocab")  # values of tokenizer.ggml.model
SPECIAL = ("bos", "eos", "eot", "sep", "pad", "mask")
# Characters that a terminal obeys or reorders: controls, line and paragraph separators, and
# direction marks. Newline and tab are shown in their own way.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text."""

    id: int
    bytes: bytes
    """The bytes that it stands for; a character may span several tokens."""
    special: bool = False
    """Whether it is a special token, such as the one that ends an answer."""
    added: bool = False
    """Whether the tokenizer added it, so that it is not in the text."""

    @property
    def text(self) -> str | None:
        """The characters; None if the bytes are not whole characters."""
        try:
            return self.bytes.decode()
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True, slots=True)
class Tokenization:
    """A text and its tokens."""

    text: str
    tokens: tuple[Token, ...]

    @property
    def added(self) -> tuple[Token, ...]:
        return tuple(token for token in self.tokens if token.added)

    @property
    def is_exact(self) -> bool:
        """Whether the tokens' bytes, joined, equal the text's.

        They differ if the tokenizer puts a space before a text, or normalizes it.
        """
        return b"".join(t.bytes for t in self.tokens if not t.added) == self.text.encode()


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A GGUF's loaded vocabulary, and the file's header."""

    header: GGUFFile
    vocabulary: Vocabulary
    chosen: tuple[str, Mapping[str, str]] | None = None
    """A chat template with its special tokens, used in place of the file's own."""

    def ready(self, text: str, *, parse: bool) -> str:
        """A text, normalized for llama.cpp. Raises ModelError for a damaged normalizer."""
        written, space = self.header.text(NORMALIZER), self.header.text(SPACE_PREFIX)
        if parse:
            return front_of(self.header).text(text)
        return spaced(normalizer(written)(text), space)

    @property
    def begins_with_space(self) -> bool:
        """Whether a space is put before a text."""
        return self.puts_spaces or self.header.text(SPACE_PREFIX) == FIRST

    @property
    def puts_spaces(self) -> bool:
        """Whether llama.cpp puts a space before a text, and again after each special token."""
        adds_space = self.header.metadata.get("tokenizer.ggml.add_space_prefix", True)
        return self.header.text("tokenizer.ggml.model") == "llama" and bool(adds_space)

    @property
    def special_tokens(self) -> dict[str, Token]:
        """The model's special tokens by name, such as bos."""
        ids = {name: self.vocabulary.special(name) for name in SPECIAL}
        return {name: token_of(self.vocabulary, id_) for name, id_ in ids.items() if id_ >= 0}


@contextmanager
def open_tokenizer(
    path: Path, toolchain: Toolchain, own: OwnTemplate | None = None, chosen: str | None = None
) -> Iterator[Tokenizer]:
    """Open a GGUF's tokenizer without its weights. Raises ModelError if it has none.

    own: an adapter's template; chosen: a template that the user has named.
    """
    header = read_gguf(path)
    refuse_adapter(header)
    if header.text("tokenizer.ggml.model") in NO_VOCABULARY:
        raise ModelError(
            f"`{path}` holds no vocabulary", hint="name a GGUF of a whole language model"
        )
    with vocabulary(path, toolchain) as loaded:
        tokenizer = Tokenizer(header, loaded)
        if own is not None:
            yield replace(tokenizer, chosen=(own.facts.plain, dict(own.facts.tokens)))
        elif chosen is not None:
            yield replace(tokenizer, chosen=(chosen, template_tokens(tokenizer)))
        else:
            yield tokenizer


def tokenize(
    tokenizer: Tokenizer, text: str, *, special: bool = True, parse: bool = True
) -> Tokenization:
    """Tokenize `text` as transformers does by default.

    special: add the tokens that the model expects around a text; parse: read special tokens such
    as `</s>` in the text as tokens.
    """
    loaded, ready = tokenizer.vocabulary, tokenizer.ready(text, parse=parse)
    ids = loaded.encode(ready, special=special, parse=parse)
    head, tail = (added(ids, loaded.encode(ready, parse=parse))) if special else (0, 0)
    known = {id_: token_of(loaded, id_) for id_ in set(ids)}
    tokens = [known[id_] for id_ in ids]
    for place in (*range(head), *range(len(ids) - tail, len(ids))):
        tokens[place] = token_of(loaded, ids[place], added=True)
    return Tokenization(text, tuple(tokens))


def tokenize_chat(
    tokenizer: Tokenizer, messages: Messages, *, clock: Clock = datetime.now
) -> Tokenization:
    """Tokenize a chat as the template renders it, up to the beginning of the answer.

    Raises ModelError if the GGUF has no template, or if the template refuses the chat.
    """
    return tokenize(tokenizer, render_chat(tokenizer, messages, clock=clock), special=False)


def render_chat(tokenizer: Tokenizer, messages: Messages, *, clock: Clock = datetime.now) -> str:
    """Render a chat as transformers' apply_chat_template does. Raises ModelError."""
    template = template_of(tokenizer)
    refuse_endless(template, tokenizer.header.path)
    try:
        return Template(template, template_tokens(tokenizer), clock).render(messages)
    except IrregularError as error:
        raise ModelError(
            f"the chat template of `{tokenizer.header.path}` cannot be used: {one_line(error)}",
            hint="`decant tokens MODEL --template` shows it",
        ) from error


@lru_cache(maxsize=8)
def refuse_endless(template: str, path: Path) -> None:
    """Raise ModelError for a template that does not end; each template is tried once."""
    refuse_runaway(template, path)


def template_of(tokenizer: Tokenizer) -> str:
    """The chat template. Raises ModelError if the GGUF has none."""
    template = tokenizer.chosen[0] if tokenizer.chosen else tokenizer.header.text(TEMPLATE)
    if not template:
        raise ModelError(
            f"`{tokenizer.header.path}` has no chat template",
            hint="its base had none: give the whole prompt as TEXT, without --chat",
        )
    return template


def template_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens for a template: those that come with it, else the file's."""
    if tokenizer.chosen:
        return dict(tokenizer.chosen[1])
    return special_tokens(tokenizer.header)


def added(ids: Sequence[int], own: Sequence[int]) -> tuple[int, int]:
    """How many tokens stand before and after the text's."""
    extra = len(ids) - len(own)
    for head in range(extra, -1, -1):
        if ids[head : head + len(own)] == own:
            return head, extra - head
    return 0, 0


def token_of(loaded: Vocabulary, id_: int, *, added: bool = False) -> Token:
    return Token(id_, loaded.piece(id_), loaded.is_special(id_), added)


def one_line(error: Exception) -> str:
    """A template's error message on one line, escaped, as it may contain anything."""
    return escaped(" ".join(str(error).split()))


def escaped(text: str, *, keep: str = "") -> str:
    """The text with the characters that a terminal obeys written as escapes like `\\x1b`."""
    return OBEYED.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)
