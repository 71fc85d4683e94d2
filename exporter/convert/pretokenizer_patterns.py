"""The patterns by which byte-level tokenizers cut texts, and llama.cpp's names of them.

As they stand in tokenizer.json and, as comments beside llama.cpp's own spelling of them, in its
src/llama-vocab.cpp. Where two names are given, the second keeps whole words that the vocabulary
holds ("ignore_merges").
"""

from __future__ import annotations

from typing import TypeAlias

Cuts: TypeAlias = "tuple[str, ...]"

SUFFIX = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
"""'s, 't, 're … after a word, in any case; `spelled` writes all patterns so."""
GPT2 = "GPT-2"
"""ByteLevel's own pattern, which no tokenizer.json writes out."""
DIGIT = r"\p{N}"

ENDS = r"\s+(?!\S)|\s+"
LINES = rf"\s*[\r\n]+|{ENDS}"
MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + LINES
)
O200K = CASED % (f"{SUFFIX}?", f"{SUFFIX}?", r"\p{N}{1,3}")
KANA = "[一-龥\u3040-ゟ゠-ヿ]+"
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + LINES
).replace('\\"', '"')
HALVES = "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
WORDS = " ?[^(\\s|[.,!?…。，、।۔،])]+"

MARKED = (
    rf"{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{DIGIT}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{LINES}"
)

NAMES: dict[Cuts, tuple[str, ...]] = {
    (GPT2,): ("gpt-2",),
    (DIGIT, GPT2): ("smollm",),
    ("punctuation Contiguous", GPT2, rf"{DIGIT}+", "[0-9][0-9][0-9]"): ("falcon",),
    (f"{SUFFIX}|{WORD}|\\p{{N}}{{1,3}}|{MARKS}|{LINES}",): ("dbrx", "llama-bpe"),
    (f"{SUFFIX}|{WORD}|{DIGIT}|{MARKS}|{LINES}",): ("qwen2",),
    (MARKED,): ("qwen35",),
    (f"{WORD}|{DIGIT}|{MARKS}|{LINES}",): ("ufakzeka",),
    (
        rf"{SUFFIX}|{WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES}",
    ): ("seed-coder",),
    (
        rf"{SUFFIX}|{WORD}|\p{{N}}{{1,3}}|{MARKS}|\s*[\r\n]+|{HALVES}|\s{{1,2}}(?!\S)|\s{{1}}",
    ): ("jais-2",),
    (r"\p{N}{1,3}", f"{SUFFIX}|{WORD}|\\p{{N}}+|{MARKS}|{LINES}"): ("minicpm5",),
    (CASED % ("", "", DIGIT),): ("tekken",),
    (O200K,): ("gpt-4o",),
    (r"\d{1,3}(?=(?:\d{3})*\b)", O200K): ("tiny_aya",),
    (r"\p{N}{1,3}", KANA, DEEPSEEK): ("deepseek-v3",),
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT): ("deepseek-coder",),
    (WORDS,): ("bloom",),
    (WORDS, DIGIT): ("viking",),
}  # fmt: skip
"""By what cuts a text, step by step."""
