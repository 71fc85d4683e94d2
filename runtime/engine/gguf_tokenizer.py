"""A text, or a chat, cut into a model's tokens: in-process, from the GGUF's vocabulary alone."""

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
from exporter.store import refuse_adapter
from runtime.engine.own_template import OwnTemplate
from runtime.engine.request_texts import front_of

TEMPLATE = "tokenizer.chat_template"
NO_VOCABULARY = (None, "none", "no_vocab")  # values of tokenizer.ggml.model
SPECIAL = ("bos", "eos", "eot", "sep", "pad", "mask")
# What a terminal would obey, or would write in another order: controls, line and paragraph
# separators, and the marks of direction. Newline and tab are shown in ways of their own.
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text."""

    id: int
    bytes: bytes
    """What it stands for; a character may be spread over the bytes of several."""
    special: bool = False
    """Whether it is no text of its own, such as the one that ends an answer."""
    added: bool = False
    """Whether the tokenizer put it there, not the text."""

    @property
    def text(self) -> str | None:
        """The characters; None where its bytes are not whole ones."""
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
        """Whether the tokens, joined, give the text's bytes back.

        They do not where a tokenizer puts a space before a text, or changes its letters.
        """
        return b"".join(t.bytes for t in self.tokens if not t.added) == self.text.encode()


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A GGUF's vocabulary, loaded, and what its header says."""

    header: GGUFFile
    vocabulary: Vocabulary
    chosen: tuple[str, Mapping[str, str]] | None = None
    """A chat template with its special tokens, in place of the file's own."""

    def ready(self, text: str, *, parse: bool) -> str:
        """A text as llama.cpp is given it. Raises ModelError for a damaged normalizer."""
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
        unsaid_or_said = self.header.metadata.get("tokenizer.ggml.add_space_prefix", True)
        return self.header.text("tokenizer.ggml.model") == "llama" and bool(unsaid_or_said)

    @property
    def special_tokens(self) -> dict[str, Token]:
        """What begins, ends and fills texts, by name, as far as the model has it."""
        ids = {name: self.vocabulary.special(name) for name in SPECIAL}
        return {name: token_of(self.vocabulary, id_) for name, id_ in ids.items() if id_ >= 0}


@contextmanager
def open_tokenizer(
    path: Path, toolchain: Toolchain, own: OwnTemplate | None = None, chosen: str | None = None
) -> Iterator[Tokenizer]:
    """The tokenizer of a GGUF, without its weights. Raises ModelError for one that has none.

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
    """Cut `text` as transformers does by default.

    special: add what the model expects around a text; parse: take `</s>` and its like in the
    text for the tokens that they name.
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
    """A chat as the template writes it, up to where the answer begins; nothing is added to it.

    Raises ModelError when the GGUF has no template, or when it refuses.
    """
    return tokenize(tokenizer, render_chat(tokenizer, messages, clock=clock), special=False)


def render_chat(tokenizer: Tokenizer, messages: Messages, *, clock: Clock = datetime.now) -> str:
    """What transformers' apply_chat_template gives, for the GGUF's template and tokens."""
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
    """Raise ModelError for a template that does not end; one that does is tried once."""
    refuse_runaway(template, path)


def template_of(tokenizer: Tokenizer) -> str:
    """The chat template. Raises ModelError when the GGUF has none."""
    template = tokenizer.chosen[0] if tokenizer.chosen else tokenizer.header.text(TEMPLATE)
    if not template:
        raise ModelError(
            f"`{tokenizer.header.path}` has no chat template",
            hint="its base had none: give the whole prompt as TEXT, without --chat",
        )
    return template


def template_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a template knows: those that come with it, else the file's."""
    if tokenizer.chosen:
        return dict(tokenizer.chosen[1])
    return special_tokens(tokenizer.header)


def added(ids: Sequence[int], own: Sequence[int]) -> tuple[int, int]:
    """How many tokens stand before and after a text's own."""
    extra = len(ids) - len(own)
    for head in range(extra, -1, -1):
        if ids[head : head + len(own)] == own:
            return head, extra - head
    return 0, 0


def token_of(loaded: Vocabulary, id_: int, *, added: bool = False) -> Token:
    return Token(id_, loaded.piece(id_), loaded.is_special(id_), added)


def one_line(error: Exception) -> str:
    """What a template says, which may be anything."""
    return escaped(" ".join(str(error).split()))


def escaped(text: str, *, keep: str = "") -> str:
    """The text with what a terminal would obey written as `\\x1b`."""
    return OBEYED.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)
