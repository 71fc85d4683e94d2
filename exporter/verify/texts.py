"""Test texts for tokenizers: languages, code, and known difficulties."""

from __future__ import annotations

PLAIN = (
    "The quick brown fox jumps over the lazy dog.",
    "It's 5 o'clock; they've said we'll go, haven't they? I'd rather not, you're RIGHT, I'M sure.",
    "Dr. Smith paid $1,234.56 (about 12%) on 03/04/2025 at 18:45.",
    "Die Donaudampfschifffahrtsgesellschaft hat ihren Sitz geändert.",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # π\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] & 0xFF; }\n\treturn a;\r\n",
    '{"key": [1, 2.5e-3, null, true], "text": "a \\"quote\\" and \\\\ more"}',
    "SELECT * FROM t WHERE x != 'y' AND z >= 10; -- note",
    '<div class="a">&nbsp;</div> <!-- x --> https://example.org/a?b=c&d=%20#e',
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case x86_64 v1.2.3",
    "0 1 12 123 1234 12345 1234567890 00000000000",
    "!!! ??? ... --- ___ *** ((())) [[{}]] ~~ ^^ @@ ##",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbb",
    "supercalifragilisticexpialidocious Pneumonoultramicroscopicsilicovolcanoconiosis",
    "x",
    "naïve café, coöperation, œuvre, straße, ¿qué?, ¡señor!",
    "3.14 -7 +8 1e10 0x1F 1/2",
)
"""Texts that llama.cpp must split as transformers does: text and code in Latin letters."""

RARE = (
    "naïve café, coöperation, Ångström, œuvre, straße, ¿qué?, ¡señor!",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Đường phố Hà Nội rất đông.",
    "今天天气很好，我们去公园散步吧。价格是三百五十元。",
    "繁體中文與简体中文混在一起，「引號」也在這裡。",
    "東京都に住んでいます。カタカナとひらがな、漢字も混ざった文です。",
    "ﾊﾝｶｸ文字と全角ＡＢＣ１２３。",
    "나는 오늘 학교에 갔다가 친구를 만났습니다.",
    "ᄀ\u1161ᆨ decomposed 각",
    "ذهبت إلى السوق واشتريت خبزًا وحليبًا، ثم عدت إلى البيت.",
    "שלום, מה שלומך היום? הַכֹּל בְּסֵדֶר.",
    "मैं आज बाज़ार गया और फल खरीदे। क्या तुम ठीक हो?",
    "আমি ভাত খাই। நான் தமிழ் பேசுகிறேன். ฉันกินข้าวแล้วครับ",
    "Сегодня хорошая погода, и мы идём гулять в парк. Ёлка.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "🙂👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 🇩🇪🇯🇵 1️⃣",
    "e\u0301 é \u212b Å \ufb01 ﬁ ½ ² №",
    "a\u00a0b\u2009c\u3000d\u200be\u200ff\ufefeg",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕏 𐍈 𒀀 \U0002070e \ue000 \ufffd",
    "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$ ∀ε>0 ∃δ ≤ ∞",
    " leading space",
    "  two leading spaces",
    "trailing spaces   ",
    "a  b   c    d     e        f                g",
    "\n",
    "\n\n\n",
    "one\ntwo\n\nthree\n\n\nfour\r\nfive",
    "\tone\t\ttwo\t \t three",
    "   \n  \t\n   x",
    "3.14 -7 +8 1e10 0x1F 1/2 ٣٤٥ १२३ Ⅷ",
    "\x00\x01\x1f\x7f",
)
"""Texts with other scripts, rare characters and spaces: for some models llama.cpp splits them
differently, even with the right vocabulary.
"""

SPECIAL_LOOKALIKES = (
    "<s> </s> <unk> <pad> <bos> <eos> [INST] [/INST] <<SYS>>",
    "<|im_start|>user\nhi<|im_end|><|endoftext|><|eot_id|><|begin_of_text|>",
    "<start_of_turn>user<end_of_turn> [CLS] [SEP] [MASK] <mask> <0x0A> ▁x Ġx",
)
"""Texts that many tokenizers treat as special; a user's text may contain them."""

CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello!"},),
    (
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": "  And twice that?\n"},
    ),
    (
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Größe? 大きい? <b>&amp;</b>"},
        {"role": "assistant", "content": "Ja"},
        {"role": "user", "content": "{{ braces }} {% and %} \"quotes\" 'too'"},
    ),
    (
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "Two."},
    ),
)

PARAGRAPH = """\
A river begins as rain on high ground. The water runs downhill, joins other streams, and cuts a \
bed into the rock. Over thousands of years the valley grows wider, and the river slows down and \
bends. Where it meets the sea it drops the sand and mud that it carried, and builds new land.

People have always settled beside rivers. They drank the water, caught fish, watered their \
fields and moved goods by boat. Many of the first cities stood on a river's bank, and many of \
the largest still do. A bridge was often the reason why a town began where it did: roads from \
both sides had to meet there, and travellers who waited for the ferry needed a bed and a meal.

What is the capital of France? The capital of France is Paris. Where does a bee live? A bee \
lives in a hive. How many legs does a spider have? A spider has eight legs. What does a cow \
drink? A cow drinks water, and a calf drinks milk. Which is larger, the sun or the moon? The sun \
is far larger, but it is also far away, so that both look much the same size from here.

Here is a small program: def add(a, b): return a + b. It takes two numbers and gives their sum, \
so add(2, 3) is 5. If you call it with two texts it puts one after the other, and add("ab", \
"cd") is "abcd". A function that behaves so differently for different kinds of input can \
surprise the reader, which is why good names and a line of explanation are worth their space.
"""
"""The default text of the full verification."""
