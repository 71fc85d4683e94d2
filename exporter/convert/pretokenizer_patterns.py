"""The patterns by which byte-level tokenizers split texts, with llama.cpp's names.

They come from tokenizer.json files and from the comments beside llama.cpp's spelling of them in
src/llama-vocab.cpp. Of two names, the second is for tokenizers that keep whole words of the
vocabulary ("ignore_merges").
"""

from __future__ import annotations

from typing import TypeAlias

Cuts: TypeAlias = "tuple[str, ...]"

SUFFIX = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
"""'s, 't, 're … after a word, in any case; `spelled` normalizes all patterns to this form."""
GPT2 = "GPT-2"
"""ByteLevel's default pattern, which tokenizer.json never contains."""
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
"""Patterns in order -> llama.cpp's names."""
