"""Compares the GGUF's tokenizer in llama.cpp with transformers': single tokens, and texts.

Errors of the export are problems: the vocabulary, the tokens around a text, and the splitting of
plain text. If the vocabulary is right and only rare texts are split differently, the cause is
llama.cpp's way of splitting, which is noted with an example.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.core.gguf import GGUFFile
from exporter.llamacpp.normalizer import (
    NORMALIZER,
    SPACE_PREFIX,
    missing_normalizer,
    normalizer,
    spaced,
)
from exporter.verify.logits_engine import LogitsEngine, VocabularyFacts
from exporter.verify.texts import PLAIN, RARE, SPECIAL_LOOKALIKES
from exporter.verify.token_list import KEY, NORMAL, SPACE, VocabularyFindings, array, is_idle
from exporter.verify.verification import Check

if TYPE_CHECKING:
    from exporter.verify.expected import Expected

FEW = 3  # differences shown
MOST_RARE = 0.25  # share of rare texts; a wrong tokenizer splits most of them differently
UNIGRAM = "t5"  # tokenizer.ggml.model
MADE_UP, WORDS, PARTS, SEED = 16, 8, 3, 20  # texts, words of a text, tokens of a word
SPACES = f"{SPACE}\u0120#"  # marks of a word's beginning or middle in vocabularies
ADDED = 64  # added tokens that are searched in a text
HINT = "export it again, with the tokenizer that was saved with the adapter, or else the base's"

Ids = list[int]


@dataclass(slots=True)
class Cuts:
    """Texts that were split, and those that llama.cpp splits differently."""

    tokenizer: Any
    file: GGUFFile
    ready: Callable[[str], str] = str
    """The function that prepares a text for llama.cpp."""
    tried: int = 0
    plain: list[str] = field(default_factory=list)
    rare: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """Texts whose spaces and line ends llama.cpp merges before it splits them."""
    made_up: list[str] = field(default_factory=list)
    """Texts of words that were made up from the vocabulary."""
    special: list[str] = field(default_factory=list)
    spaces: list[str] = field(default_factory=list)
    """Texts that differ only in sentencepiece's space before an initial space."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def differing(self) -> int:
        return sum(
            map(len, (self.plain, self.rare, self.odd, self.made_up, self.special, self.spaces))
        )

    def add(self, text: str, actual: Ids, expected: Ids) -> None:
        """Count one text, with its ids in llama.cpp and in transformers."""
        self.tried += 1
        if actual == expected:
            return
        message = difference(text, actual, expected, self.tokenizer)
        if text.startswith(" ") and is_one_more_space(actual, expected, self.tokenizer):
            self.spaces.append(message)
        elif text in SPECIAL_LOOKALIKES:
            self.special.append(message)
        elif self.file.text(f"{KEY}model") == UNIGRAM and text != " ".join(text.split()):
            self.odd.append(message)
        else:
            (self.plain if text in PLAIN else self.rare).append(message)


def check_tokens(
    engine: LogitsEngine,
    facts: VocabularyFacts,
    file: GGUFFile,
    expected: Expected,
    vocabulary: VocabularyFindings,
) -> Check:
    """Compare texts of many kinds. `file` must hold whole arrays.

    vocabulary: the findings of the comparison token by token.
    """
    tokenizer, whole = expected.tokenizer, expected.whole
    cuts = Cuts(tokenizer, file)
    wanted = missing_normalizer(whole, file.text(f"{KEY}model") or "")
    compare_normalizer(file.text(NORMALIZER), wanted, cuts)
    special = tuple(str(token.content) for token in tokenizer.added_tokens_decoder.values())
    cuts.ready = normalize = given_to_llama_cpp(wanted, file, special)
    texts = (*PLAIN, *RARE, *SPECIAL_LOOKALIKES)
    bare = compare_texts(engine, texts, normalize, cuts)
    compare_ends(engine, facts, texts, normalize, bare, cuts)
    compare_split_specials(engine, given_to_llama_cpp(wanted, file, ()), cuts)
    compare_added(engine, cuts)
    compare_made_up(engine, normalize, cuts)
    detail = f"{cuts.tried - cuts.differing} of {cuts.tried} texts cut into the same tokens"
    problems = [*vocabulary.problems, *cuts.problems]
    lists = cuts.plain or (cuts.rare if len(cuts.rare) > MOST_RARE * len(RARE) else [])
    if lists or (problems and cuts.rare):
        shown = lists or cuts.rare
        problems += [f"{detail}; {shown[0]}", *shown[1:FEW]]
    if len(cuts.made_up) > MADE_UP / 2 and not lists:
        problems += [f"{detail}; {cuts.made_up[0]}"]
    if vocabulary.unordered and (cuts.plain or cuts.rare or cuts.made_up):
        problems.insert(0, vocabulary.unordered)
    notes = [*vocabulary.notes, *cuts.notes, *limits(cuts)]
    numbers: dict[str, float] = {"texts": cuts.tried, "differing": cuts.differing}
    return Check(
        "tokenizer", tuple(problems), detail, tuple(notes if not problems else ()), numbers,
        hint=HINT,
    )  # fmt: skip


def given_to_llama_cpp(
    wanted: str | None, file: GGUFFile, special: tuple[str, ...]
) -> Callable[[str], str]:
    """The function by which decant prepares a text for llama.cpp: letters, and the first space.

    special: tokens before which no space is put.
    """
    normalize, first = normalizer(wanted), file.text(SPACE_PREFIX)

    def ready(text: str) -> str:
        text = normalize(text)
        return text if text.startswith(special) else spaced(text, first)

    return ready


def limits(cuts: Cuts) -> list[str]:
    """Deviations of llama.cpp itself, with an example of each kind."""
    kinds = {
        "llama.cpp cuts {} texts with rare characters otherwise": cuts.rare,
        "llama.cpp cuts {} texts with unusual spaces or line ends otherwise": cuts.odd,
        "llama.cpp cuts {} texts that hold special tokens otherwise": cuts.special,
        "llama.cpp cuts {} texts of made-up words otherwise": cuts.made_up,
        "llama.cpp gives {} texts that begin with a space one space token more": cuts.spaces,
    }
    return [
        f"{message.format(f'{len(found)} of {cuts.tried}')}: {found[0]}"
        for message, found in kinds.items()
        if found
    ]


def compare_normalizer(written: str | None, wanted: str | None, cuts: Cuts) -> None:
    """Compare the file's normalization steps with the tokenizer's."""
    if written is None and wanted is not None:
        cuts.notes.append(
            f"the file does not say how its tokenizer normalizes text ({NORMALIZER}), so that"
            " decant cannot do it either: export it again if that matters"
        )
    elif written is not None and (wanted is None or json_of(written) != json_of(wanted)):
        cuts.problems.append(f"{NORMALIZER} is {written} and should be {wanted or 'absent'}")


def json_of(text: str) -> object:
    try:
        found: object = json.loads(text)
    except ValueError:
        return text
    return found


def compare_texts(
    engine: LogitsEngine, texts: Sequence[str], normalize: Callable[[str], str], cuts: Cuts
) -> list[tuple[Ids, Ids]]:
    """The ids of every text without BOS and EOS, in llama.cpp and in transformers."""
    ready = [normalize(text) for text in texts]
    expected = [ids_of(cuts.tokenizer, text) for text in texts]
    actual = engine.encode(ready)
    for text, ours, theirs in zip(texts, actual, expected, strict=True):
        cuts.add(text, ours, theirs)
    changed = [at for at, text in enumerate(texts) if ready[at].lstrip(" ") != text.lstrip(" ")]
    raw = dict(zip(changed, engine.encode([texts[at] for at in changed]), strict=True))
    without = [at for at in changed if raw[at] != expected[at] == actual[at]]
    if without:
        at = without[0]
        cuts.notes.append(
            "this tokenizer normalizes text, which llama.cpp does not: decant does it before"
            f" llama.cpp sees a text; other programs cut {len(without)} of {len(texts)} texts"
            f" otherwise: {difference(texts[at], raw[at], expected[at], cuts.tokenizer)}"
        )
    return list(zip(actual, expected, strict=True))


def compare_ends(
    engine: LogitsEngine,
    facts: VocabularyFacts,
    texts: Sequence[str],
    normalize: Callable[[str], str],
    bare: Sequence[tuple[Ids, Ids]],
    cuts: Cuts,
) -> None:
    """Compare the texts again, with BOS and EOS."""
    tokenizer = cuts.tokenizer
    actual = engine.encode([normalize(text) for text in texts], special=True)
    expected = [ids_of(tokenizer, text, special=True) for text in texts]
    same = [at for at, (ours, theirs) in enumerate(bare) if ours == theirs and ours]
    if not same:
        return
    ours, theirs = (around(found[same[0]], bare[same[0]][0]) for found in (actual, expected))
    if ours == theirs:
        for at in same:
            cuts.add(texts[at], actual[at], expected[at])
        return
    message = (
        f"a text is put between {named(ours, tokenizer)} by llama.cpp and between"
        f" {named(theirs, tokenizer)} by transformers"
    )
    begin, end = theirs or ([], [])
    may_end = not end or end == [tokenizer.eos_token_id] or end == [facts.special["sep"]]
    is_certain = theirs is not None and len(begin) <= 1 and len(end) <= 1 and may_end
    (cuts.problems if is_certain else cuts.notes).append(message)


def around(whole: Ids, part: Ids) -> tuple[Ids, Ids] | None:
    """The ids before and after a part; None if it is not contained."""
    for at in range(len(whole) - len(part) + 1):
        if whole[at : at + len(part)] == part:
            return whole[:at], whole[at + len(part) :]
    return None


def named(ends: tuple[Ids, Ids] | None, tokenizer: Any) -> str:
    if ends is None:
        return "other tokens, by which it changes,"
    return " and ".join(str(tokens_of(ids, tokenizer)) for ids in ends)


def compare_split_specials(
    engine: LogitsEngine, normalize: Callable[[str], str], cuts: Cuts
) -> None:
    """Compare users' texts that look like special tokens, split as plain text."""
    ready = [normalize(text) for text in SPECIAL_LOOKALIKES]
    for text, ours in zip(SPECIAL_LOOKALIKES, engine.encode(ready, parse=False), strict=True):
        theirs = ids_of(cuts.tokenizer, text, split_special_tokens=True)
        cuts.tried += 1
        if ours != theirs:
            cuts.special.append(f"as plain text, {difference(text, ours, theirs, cuts.tokenizer)}")


def compare_added(engine: LogitsEngine, cuts: Cuts) -> None:
    """Compare tokens that were added to the tokenizer, each within a text."""
    size = len(array(cuts.file, "tokens"))
    added = [
        (number, str(token.content))
        for number, token in sorted(cuts.tokenizer.added_tokens_decoder.items())
        if number < size
    ]
    step = max(1, -(-len(added) // ADDED))
    texts = [f"a{content}b" for _, content in added[::step]]
    ready = [cuts.ready(text) for text in texts]
    lost = []
    for (number, content), text, ours in zip(
        added[::step], texts, engine.encode(ready), strict=True
    ):
        theirs = ids_of(cuts.tokenizer, text)
        cuts.tried += 1
        if ours == theirs:
            continue
        # llama.cpp writes ▁ for a space, and knows no other ▁ in a text
        is_lost = number in theirs and number not in ours and SPACE not in content
        if is_lost and not is_idle(number, cuts.file, cuts.tokenizer):
            lost.append(f"token {number} {content!r}")
        message = difference(text, ours, theirs, cuts.tokenizer)
        cuts.special.append(message)
    if lost:
        cuts.problems.append(
            f"{len(lost)} special tokens are not found in a text by llama.cpp, such as {lost[0]}"
        )


def compare_made_up(engine: LogitsEngine, normalize: Callable[[str], str], cuts: Cuts) -> None:
    """Compare made-up words of the vocabulary's tokens, which can be merged in many ways."""
    texts = made_up(array(cuts.file, "tokens"), array(cuts.file, "token_type"))
    actual = engine.encode([normalize(text) for text in texts])
    for text, ours in zip(texts, actual, strict=True):
        theirs = ids_of(cuts.tokenizer, text)
        cuts.tried += 1
        if ours != theirs:
            cuts.made_up.append(difference(text, ours, theirs, cuts.tokenizer))


def made_up(tokens: Sequence[Any], types: Sequence[Any]) -> list[str]:
    """Texts of words in Latin letters; always the same for a vocabulary."""
    parts = [
        part
        for token, kind in zip(tokens, types, strict=False)
        if kind == NORMAL and (part := token.strip(SPACES)).isascii() and part.isalpha()
    ]
    if not parts:
        return []
    chosen = random.Random(SEED)  # noqa: S311 - the texts must be the same each time
    half = MADE_UP * WORDS // 2
    words = chosen.sample(parts, min(half, len(parts)))
    words += ["".join(chosen.choices(parts, k=PARTS)) for _ in range(half)]
    return [" ".join(words[at : at + WORDS]) for at in range(0, len(words), WORDS)]


def ids_of(tokenizer: Any, text: str, *, special: bool = False, **options: bool) -> Ids:
    found: Ids = tokenizer(text, add_special_tokens=special, **options)["input_ids"]
    return found


def is_one_more_space(actual: Ids, expected: Ids, tokenizer: Any) -> bool:
    """Whether the ids differ only in the space that sentencepiece puts before every text.

    transformers omits it before an initial space; llama.cpp adds it as sentencepiece does.
    """
    pairs = enumerate(zip(actual, expected, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), 0)
    more = actual[:at] + actual[at + 1 :] == expected
    return more and tokens_of(actual[at : at + 1], tokenizer) == [SPACE]


def difference(text: str, actual: Ids, expected: Ids, tokenizer: Any) -> str:
    """Describe the first difference of two lists of ids."""
    at = next(
        (n for n, (a, b) in enumerate(zip(actual, expected, strict=False)) if a != b),
        min(len(actual), len(expected)),
    )
    ours, theirs = (
        f"{ids[at : at + 4]} {tokens_of(ids[at : at + 4], tokenizer)}" for ids in (actual, expected)
    )
    return f"{text[:40]!r} from token {at}: {ours} in the GGUF, {theirs} in transformers"


def tokens_of(ids: Ids, tokenizer: Any) -> list[str]:
    known = [token for token in ids if token < len(tokenizer)]
    found: list[str] = tokenizer.convert_ids_to_tokens(known)
    return found
