"""What a GGUF says of itself, against the folder it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.core.gguf import Array, GGUFFile, Value
from exporter.slots import Conversion
from exporter.verify.report import Check
from exporter.verify.texts import CONVERSATIONS
from exporter.vocabulary import Vocabulary

LONGEST = 512  # items of an array that are compared; the vocabulary is tried on texts instead
SHORT = 60  # characters of a value that are shown
TOLERANCE = 1e-6  # relative: float32 in the file
TEMPLATE = "tokenizer.chat_template"
SPECIAL = ("bos", "eos", "pad")
NONE = {"bos": (), "eos": (), "pad": (-1,)}  # llama.cpp needs no pad token
# where configs keep what must be right for a model to be itself, and its key after the architecture
SETTINGS = {
    "context_length": ("max_position_embeddings", "n_positions", "n_ctx"),
    "rope.freq_base": ("rope_theta",),
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "block_count": ("num_hidden_layers", "n_layer", "num_layers"),
}


def check_metadata(file: GGUFFile, conversion: Conversion, folder: Path) -> Check:
    """Every setting as the converter writes it for this folder, and as its config.json has it."""
    wanted = conversion.writer.kv_data[0]
    problems, compared = [], 0
    for key, held in wanted.items():
        if not key.startswith((f"{file.architecture}.", "tokenizer.")) or key == TEMPLATE:
            continue
        expected, actual = plain(held.value), file.metadata.get(key)
        if isinstance(expected, tuple) and len(expected) > LONGEST:
            expected, actual = len(expected), actual.length if isinstance(actual, Array) else None
        compared += 1
        if not same(flat(actual), expected):
            problems.append(f"{key} is {short(flat(actual))} and should be {short(expected)}")
    architecture = wanted.get("general.architecture")
    if architecture is not None and architecture.value != file.architecture:
        problems.insert(0, f"it is a {file.architecture}, and its base a {architecture.value}")
    for key, expected in settings_of(folder).items():
        actual = file.metadata.get(f"{file.architecture}.{key}")
        compared += 1
        if actual is not None and not same(actual, expected):
            problems.append(f"{file.architecture}.{key} is {actual}; config.json says {expected}")
    return Check(
        "settings", tuple(dict.fromkeys(problems)), f"{compared} settings as in the base's folder"
    )


def settings_of(folder: Path) -> dict[str, float]:
    """The context, RoPE and sizes as config.json itself has them."""
    from exporter.core.errors import CheckpointError
    from exporter.core.files import read_json_object

    config = read_json_object(
        folder / "config.json", error=CheckpointError, hint="copy the base again"
    )
    text = config.get("text_config")
    config |= text if isinstance(text, dict) else {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        config = {**rope, **config}
    return {
        key: float(value)
        for key, names in SETTINGS.items()
        for value in [next((config[name] for name in names if name in config), None)]
        if isinstance(value, (int, float))
    }


def check_special(vocab: Vocabulary, tokenizer: Any) -> Check:
    """Which tokens begin, end and fill a text."""
    problems = []
    for name in SPECIAL:
        expected, actual = getattr(tokenizer, f"{name}_token_id"), vocab.special(name)
        if expected is not None and actual not in (expected, *NONE[name]):
            problems.append(
                f"its {name} token is {actual} {vocab.text(actual)!r} and should be"
                f" {expected} {tokenizer.convert_ids_to_tokens(expected)!r}"
            )
    return Check("special tokens", tuple(problems), f"{', '.join(SPECIAL)} as the tokenizer's")


def check_template(file: GGUFFile, vocab: Vocabulary, tokenizer: Any) -> Check:
    """Conversations rendered by the GGUF's template with its own tokens, and by transformers'.

    Both by jinja2 as transformers sets it up: a server that renders would have to load the model.
    """
    from jinja2 import TemplateError

    ours, theirs = file.text(TEMPLATE), tokenizer.chat_template
    if ours is None or not theirs:
        problems = () if bool(ours) == bool(theirs) else ("only one side has a chat template",)
        return Check("chat template", problems, "none")
    tokens = {f"{name}_token": vocab.text(vocab.special(name)) for name in SPECIAL[:2]}
    problems, rendered = (), 0
    for messages in CONVERSATIONS:
        for prompt in (False, True):
            answers = []
            for template, extra in ((ours, tokens), (None, {})):
                try:
                    answers.append(render(tokenizer, messages, template, prompt, extra))
                except (TemplateError, ValueError, TypeError, KeyError) as error:
                    answers.append(f"an error: {error}")  # both must refuse alike
            rendered += 1
            if answers[0] != answers[1]:
                problems = (f"the chat template gives {parting(*answers)} in transformers",)
    return Check("chat template", problems, f"{rendered} conversations rendered alike")


def render(
    tokenizer: Any,
    messages: tuple[dict[str, str], ...],
    template: str | None,
    prompt: bool,
    tokens: dict[str, str],
) -> str:
    text = tokenizer.apply_chat_template(
        list(messages), chat_template=template, tokenize=False, add_generation_prompt=prompt,
        **tokens,
    )  # fmt: skip
    return str(text)


def parting(one: str, other: str) -> str:
    """Both texts from where they part."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    begin = max(0, at - 10)
    return f"{one[begin : at + SHORT]!r} and {other[begin : at + SHORT]!r}"


def plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def flat(value: Value | None) -> Any:
    return value.items if isinstance(value, Array) else value


def same(actual: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return (
            isinstance(actual, tuple)
            and len(actual) == len(expected)
            and all(map(same, actual, expected))
        )
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        return abs(actual - expected) <= TOLERANCE * max(abs(actual), abs(expected))
    if isinstance(expected, bytes):
        expected = expected.decode(errors="replace")
    return bool(actual == expected)


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
