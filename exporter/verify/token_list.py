"""Compares the tokens of a GGUF, one by one, with transformers' tokenizer.

Errors here come from the export. tokenization.py compares how llama.cpp uses the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.core.gguf import Array, GGUFFile
from exporter.verify.loading import gives_embeddings

KEY = "tokenizer.ggml."
SPACE = "\u2581"  # sentencepiece's space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # token types
PARSED = (UNKNOWN, CONTROL, USER_DEFINED)  # types that are matched as a whole in a text
MODELS = ("gpt2", "llama", "bert", "t5", "gemma4")  # models with a known way of writing tokens
NEAR = 1e-5  # relative: the file stores scores as float32
MOST_UNLIKE = 0.01  # share of tokens that may be written in an unknown way
FEW = 3  # tokens named in a message
TOKEN_SHOWN = 40  # characters


@dataclass(slots=True)
class VocabularyFindings:
    """Errors in the vocabulary, and limits of GGUF for it."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unordered: str = ""
    """Where the scores contradict the order of the merges: an error if texts are split
    differently.
    """


def compare_vocabulary(
    file: GGUFFile, tokenizer: Any, whole: Mapping[str, Any], rows: int
) -> VocabularyFindings:
    """Compare tokens, their types, merges and scores. `file` must hold whole arrays.

    whole: the contents of tokenizer.json, empty without one; rows: rows of the embedding; a token
    beyond them has no meaning for the model.
    """
    found = VocabularyFindings()
    model = file.text(f"{KEY}model")
    tokens, types = array(file, "tokens"), array(file, "token_type")
    if model not in MODELS:
        return found
    theirs = {number: text for text, number in tokenizer.get_vocab().items()}
    compare_tokens(tokens, theirs, model, tokenizer, found)
    beyond = sorted(number for number in theirs if number >= len(tokens))
    if beyond:
        name = f"token {beyond[0]} {shown(theirs[beyond[0]])}"
        if rows > len(tokens):
            found.problems.append(f"{name} and {len(beyond) - 1} more are not in the GGUF")
        else:
            found.notes.append(
                f"{name} is not in the GGUF: the model's embedding ends at {rows} tokens"
                + (f" ({len(beyond)} such tokens)" if len(beyond) > 1 else "")
            )
    for number, added in sorted(tokenizer.added_tokens_decoder.items()):
        if number < len(types) and types[number] not in PARSED:
            (found.notes if is_idle(number, file, tokenizer) else found.problems).append(
                f"token {number} {shown(str(added.content))} was added to the tokenizer, and the"
                " GGUF has it as a plain one: llama.cpp does not find it in a text"
            )
    inner = whole.get("model")
    if isinstance(inner, dict):
        compare_merges(file, inner, found)
        compare_scores(file, inner, tokens, types, found)
    return found


def is_idle(number: int, file: GGUFFile, tokenizer: Any) -> bool:
    """Whether a token serves training only: the mask of an embedding model."""
    return gives_embeddings(file) and number == tokenizer.mask_token_id


def compare_tokens(
    tokens: Sequence[Any],
    theirs: Mapping[int, str],
    model: str,
    tokenizer: Any,
    found: VocabularyFindings,
) -> None:
    """Compare each token's text, by id."""
    added = tokenizer.added_tokens_decoder

    def can_be(number: int, text: str) -> bool:
        owner = tokenizer if number in added else None
        return tokens[number] in (text, *written(number, text, model, owner))

    unlike = [
        number
        for number, text in theirs.items()
        if number < len(tokens) and tokens[number] != text and not can_be(number, text)
    ]
    named = ", ".join(
        f"token {number} is {shown(tokens[number])} and should be {shown(theirs[number])}"
        for number in sorted(unlike)[:FEW]
    )
    texts = set(theirs.values())
    swapped = any(tokens[number] in texts for number in unlike)  # the text belongs to another token
    if swapped or len(unlike) > MOST_UNLIKE * len(theirs):
        found.problems.append(f"{len(unlike)} of {len(theirs)} tokens are others: {named}")
    elif unlike:
        found.notes.append(f"the GGUF cannot hold {len(unlike)} tokens as they are: {named}")
    twice = doubles(tokens, theirs)
    if twice:
        found.notes.append(
            f"tokens {twice[0][0]} and {twice[0][1]} are both {shown(tokens[twice[0][0]])} in the"
            f" GGUF: llama.cpp finds only one of them in a text ({len(twice)} such pairs)"
        )


def written(number: int, text: str, model: str, tokenizer: Any | None) -> Iterator[str]:
    """Other spellings of a token in the converter; tokenizer: for an added token."""
    if model == "bert":
        yield text.removeprefix("##") if text.startswith("##") else SPACE + text
    if tokenizer is not None:
        yield text.replace(SPACE, " ")
        decoded = str(tokenizer.decode([number]))
        yield decoded
        yield decoded.replace(SPACE, " ")


def doubles(tokens: Sequence[Any], theirs: Mapping[int, str]) -> list[tuple[int, int]]:
    first: dict[Any, int] = {}
    pairs = []
    for number, text in enumerate(tokens):
        if number in theirs and first.setdefault(text, number) != number:
            pairs.append((first[text], number))
    return pairs


def compare_merges(file: GGUFFile, model: Mapping[str, Any], found: VocabularyFindings) -> None:
    """Compare the merges in their order, if the GGUF has any."""
    key = f"{KEY}merges"
    if model.get("type") != "BPE" or key not in file.metadata:
        return
    ours, theirs = array(file, "merges"), tuple(map(written_merge, model.get("merges") or ()))
    if len(ours) != len(theirs):
        found.problems.append(f"it has {len(ours)} merges and should have {len(theirs)}")
    if len(ours) != len(theirs) or ours == theirs:
        return
    differing = [at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if differing:
        at = differing[0]
        found.problems.append(
            f"{len(differing)} merges are others: merge {at} is {shown(ours[at])} and should be"
            f" {shown(theirs[at])}"
        )


def written_merge(merge: Any) -> str:
    """A merge in GGUF's spelling: a space within a part is Ġ, as in byte-level BPE."""
    if isinstance(merge, str):
        return merge
    left, right = merge
    if " " in left or " " in right:
        left, right = (part.replace(" ", "\u0120") for part in merge)
    return f"{left} {right}"


def compare_scores(
    file: GGUFFile,
    model: Mapping[str, Any],
    tokens: Sequence[Any],
    types: Sequence[Any],
    found: VocabularyFindings,
) -> None:
    """Compare the scores that choose between ways to split a text."""
    scores = array(file, "scores")
    if len(scores) != len(tokens):
        return
    if model.get("type") == "Unigram":
        wanted = dict(model["vocab"])
        wrong = [
            at
            for at, (text, score) in enumerate(zip(tokens, scores, strict=True))
            if types[at] == NORMAL and text in wanted and unlike(score, wanted[text])
        ]
        if wrong:
            at = wrong[0]
            found.problems.append(
                f"{len(wrong)} scores are others: that of token {at} {shown(tokens[at])} is"
                f" {scores[at]:.6g} and should be {wanted[tokens[at]]:.6g}"
            )
    elif model.get("type") == "BPE" and file.text(f"{KEY}model") == "llama":
        found.unordered = disorder(model, tokens, types, scores)


def unlike(score: float, wanted: float) -> bool:
    return abs(score - wanted) > NEAR * max(1.0, abs(wanted))


def disorder(
    model: Mapping[str, Any], tokens: Sequence[Any], types: Sequence[Any], scores: Sequence[Any]
) -> str:
    """The first place where a token that is merged earlier has the lower score.

    llama.cpp merges by the scores of the results, BPE by the ranks of the merges.
    """
    import numpy as np

    merges = model.get("merges") or ()
    made = map("".join, (m.split(" ", 1) if isinstance(m, str) else m for m in merges))
    numbers = {text: number for number, text in enumerate(tokens)}
    order = np.array([number for text in made if (number := numbers.get(text)) is not None], int)
    _, first = np.unique(order, return_index=True)
    order = order[np.sort(first)]
    order = order[np.asarray(types)[order] == NORMAL]
    wrong = np.flatnonzero(np.diff(np.asarray(scores)[order]) >= 0)
    if not len(wrong):
        return ""
    before, number = order[wrong[0]], order[wrong[0] + 1]
    return (
        f"token {number} {shown(tokens[number])} has no lower score than token {before}"
        f" {shown(tokens[before])}, which is merged earlier"
    )


def array(file: GGUFFile, name: str) -> Sequence[Any]:
    found = file.metadata.get(KEY + name)
    return found.items if isinstance(found, Array) else ()


def shown(text: object) -> str:
    return repr(text if len(str(text)) <= TOKEN_SHOWN else f"{str(text)[:TOKEN_SHOWN]}…")
