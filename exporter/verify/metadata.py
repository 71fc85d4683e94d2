"""Compares a GGUF's metadata with the folder it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.convert.gguf_layout import Conversion
from exporter.core.atomic_file import read_json_object
from exporter.core.errors import CheckpointError
from exporter.core.gguf import Array, GGUFFile, Value
from exporter.inputs.chat_template import MISTAKES
from exporter.inputs.template_process import refuse_runaway
from exporter.verify.loading import gives_embeddings
from exporter.verify.logits_engine import VocabularyFacts
from exporter.verify.texts import CONVERSATIONS
from exporter.verify.verification import Check

ERROR = "an error: "
SHORT = 60  # characters shown of a value
TOLERANCE = 1e-6  # relative: the file stores float32
TEMPLATE = "tokenizer.chat_template"
SCORES = "tokenizer.ggml.scores"  # only their order matters, compared with the merges'
ROPE = "rope.freq_base"
CONTEXT = "context_length"
THETA = "rope_theta"
CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx")
SPECIAL = ("bos", "pad")
NONE = {"bos": (), "pad": (-1,)}  # llama.cpp needs no pad token
# types that use RoPE's base unchanged; the others (dynamic, xdrope…) recompute it
PLAIN_ROPE = ("default", "linear", "yarn", "llama3", "longrope", "su", "proportional", "mrope")
OFFSET = 8  # first position of RoBERTa and others
END_SLOTS = ("eos", "eot", "eom")  # a GGUF's keys for ids that end a generation
GENERATION = "generation_config.json"
HINT = "export it again: the base's config, tokenizer or template is not what it was made with"


def check_metadata(file: GGUFFile, conversion: Conversion, folder: Path) -> Check:
    """Compare all settings with the converter's for this folder, and some with config.json.

    `file` must hold whole arrays.
    """
    wanted = conversion.writer.kv_data[0]
    by_order = file.text("tokenizer.ggml.model") == "llama"  # other models add scores
    problems, compared = [], 0
    for key, held in wanted.items():
        if not key.startswith((f"{file.architecture}.", "tokenizer.")) or key == TEMPLATE:
            continue
        if key.startswith("tokenizer.") and key.endswith("_token_id") and key not in file.metadata:
            continue  # check_special compares what llama.cpp makes of it
        compared += 1
        value = held.value
        if isinstance(value, bytes) and held.type.name == "ARRAY":  # such as a charsmap
            value = tuple(value)
        expected, actual = plain(value), flat(file.metadata.get(key))
        if key == SCORES and by_order and isinstance(actual, tuple) and alike(actual, expected):
            continue
        if not same(actual, expected):
            problems.append(unlike(key, actual, expected))
    architecture = wanted.get("general.architecture")
    if architecture is not None and architecture.value != file.architecture:
        problems.insert(0, f"it is a {file.architecture}, and its base a {architecture.value}")
    written, notes = check_config(file, config_of(folder))
    problems += written
    return Check(
        "settings", tuple(dict.fromkeys(problems)), f"{compared} settings as in the base's folder",
        tuple(notes), hint=HINT,
    )  # fmt: skip


def unlike(key: str, actual: Any, expected: Any) -> str:
    """Describe the difference of a value; for a long array, the first one."""
    if isinstance(actual, tuple) and isinstance(expected, tuple):
        if len(actual) != len(expected):
            return f"{key} has {len(actual)} items and should have {len(expected)}"
        pairs = enumerate(zip(actual, expected, strict=True))
        at, (one, other) = next(pair for pair in pairs if not same(*pair[1]))
        if len(actual) > SHORT:
            return f"{key}[{at}] is {short(one)} and should be {short(other)}"
    return f"{key} is {short(actual)} and should be {short(expected)}"


def alike(one: tuple[Any, ...], other: Any) -> bool:
    """Whether two lists of scores order the tokens the same way."""
    if len(one) != len(other):
        return False
    import numpy as np

    first, second = np.asarray(one), np.asarray(other)
    order = np.argsort(second, kind="stable")
    steps, theirs = np.diff(first[order]), np.diff(second[order])
    return bool(((steps >= 0) & ((steps > 0) == (theirs > 0))).all())


def check_config(file: GGUFFile, config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Problems and notes: RoPE's base and the context compared with config.json.

    The converter may read them elsewhere, or not at all. Layers and widths need no such check: with
    wrong ones the tensors do not fit, and llama.cpp does not load the file.
    """
    problems: list[str] = []
    notes: list[str] = []
    key, theta = f"{file.architecture}.{ROPE}", number_of(config.get(THETA))
    actual = number_of(file.metadata.get(key))
    if theta is not None and actual is not None and not same(actual, theta):
        message = f"{key} is {actual}; config.json says {theta}"
        (problems if has_plain_rope(config) else notes).append(message)
    key = f"{file.architecture}.{CONTEXT}"
    contexts = (number_of(config.get(name)) for name in CONTEXTS)
    context = next((number for number in contexts if number is not None), None)
    found = file.number(key)
    if context is not None and found is not None and found < context - OFFSET:
        notes.append(
            f"{key} is {found}; config.json says {context:.0f}: programs keep to the smaller one"
        )
    return problems, notes


def number_of(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def has_plain_rope(config: dict[str, Any]) -> bool:
    """Whether RoPE uses its base unchanged."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if not isinstance(rope, dict):
            continue
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind not in PLAIN_ROPE or rope.get("alpha"):
            return False
    return True


def config_of(folder: Path) -> dict[str, Any]:
    """config.json, merged with the settings of its text part and of RoPE."""
    config = read_json_object(
        folder / "config.json", error=CheckpointError, hint="copy the base again"
    )
    text = config.get("text_config")
    config |= text if isinstance(text, dict) else {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        config = {**rope, **config}
    return config


def check_special(facts: VocabularyFacts, file: GGUFFile, tokenizer: Any, folder: Path) -> Check:
    """Check the tokens that begin and pad a text, and those that end a generation."""
    problems, notes = [], []
    for name in SPECIAL:
        expected, actual = getattr(tokenizer, f"{name}_token_id"), facts.special[name]
        if expected is not None and actual not in (expected, *NONE[name]):
            problems.append(
                f"its {name} token is {actual} {facts.texts[name]!r} and should be"
                f" {named(expected, tokenizer)}"
            )
    held = {file.number(f"tokenizer.ggml.{name}_token_id") for name in END_SLOTS} - {None}
    for token in ends_of(folder, tokenizer):
        if token in facts.ends:
            continue
        message = f"{named(token, tokenizer)} ends a generation, and llama.cpp does not stop there"
        if gives_embeddings(file):
            continue  # it generates no text
        if token == tokenizer.eos_token_id or len(held) < len(END_SLOTS):
            problems.append(
                f"its eos token is {facts.special['eos']} {facts.texts['eos']!r} and should be"
                f" {named(token, tokenizer)}: {message}"
            )
        else:
            notes.append(f"{message}: a GGUF has room for {len(END_SLOTS)} such tokens")
    return Check(
        "special tokens", tuple(problems), "as the tokenizer's and the config's", tuple(notes),
        hint=HINT,
    )  # fmt: skip


def named(token: int, tokenizer: Any) -> str:
    return f"{token} {tokenizer.convert_ids_to_tokens(token)!r}"


def ends_of(folder: Path, tokenizer: Any) -> list[int]:
    """Tokens that end a generation: the tokenizer's, the config's, generation_config's.

    The configs count only for special tokens: transformers fills in an arbitrary number.
    """
    values = [config_of(folder).get("eos_token_id")]
    if (folder / GENERATION).is_file():
        read = read_json_object(folder / GENERATION, error=CheckpointError, hint="copy it again")
        values.append(read.get("eos_token_id"))
    numbers = [n for value in values for n in (value if isinstance(value, list) else [value])]
    special = tokenizer.added_tokens_decoder
    found = [tokenizer.eos_token_id, *(number for number in numbers if number in special)]
    return [number for number in dict.fromkeys(found) if number is not None]


def check_template(file: GGUFFile, facts: VocabularyFacts, tokenizer: Any) -> Check:
    """Render conversations with the GGUF's template and tokens, and with transformers'.

    Both use jinja2 with transformers' settings: rendering by a server would have to load the model.
    Raises ModelError for a template that does not end.
    """
    from jinja2 import TemplateError

    ours, theirs = file.text(TEMPLATE), tokenizer.chat_template
    if ours is None or not theirs:
        missing = () if bool(ours) == bool(theirs) else ("only one side has a chat template",)
        return Check("chat template", missing, "none")
    tokens = {f"{name}_token": facts.texts[name] for name in ("bos", "eos")}
    for text in {ours, *(theirs.values() if isinstance(theirs, dict) else (theirs,))}:
        refuse_runaway(text, file.path, CONVERSATIONS)
    problems: tuple[str, ...] = ()
    refused, rendered = list[str](), 0
    for messages in CONVERSATIONS:
        for prompt in (False, True):
            answers = []
            for template, extra in ((ours, tokens), (None, {})):
                try:
                    answers.append(render(tokenizer, messages, template, prompt, extra))
                except (TemplateError, *MISTAKES) as error:
                    answers.append(f"{ERROR}{error}")  # both must refuse in the same way
            rendered += 1
            if answers[1].startswith(ERROR):
                refused.append(answers[1].removeprefix(ERROR))
            if answers[0] != answers[1]:
                problems = (f"the chat template gives {parting(*answers)} in transformers",)
    detail = f"{rendered} conversations rendered alike"
    notes: tuple[str, ...] = ()
    if len(refused) == rendered:
        notes = (f"it renders no conversation, in transformers neither: {refused[0]}",)
    return Check("chat template", problems, detail, notes, hint=HINT)


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
    """Both texts from their first difference on."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    begin = max(0, at - 10)
    return f"{one[begin : at + SHORT]!r} and {other[begin : at + SHORT]!r}"


def plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def flat(value: Value | None) -> Any:
    return value.items if isinstance(value, Array) else value


def same(actual: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return actual == expected or (
            isinstance(actual, tuple)
            and len(actual) == len(expected)
            and (near(actual, expected) or all(map(same, actual, expected)))
        )
    if isinstance(expected, float) and isinstance(actual, (int, float)):
        return abs(actual - expected) <= TOLERANCE * max(abs(actual), abs(expected))
    if isinstance(expected, bytes):
        expected = expected.decode(errors="replace")
    return bool(actual == expected)


def near(actual: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    """Whether two tuples of numbers are equal within TOLERANCE; a quick test."""
    import numpy as np

    if not set(map(type, actual)) | set(map(type, expected)) <= {float, int}:
        return False
    one, other = np.array(actual), np.array(expected)
    return bool((np.abs(one - other) <= TOLERANCE * np.maximum(np.abs(one), np.abs(other))).all())


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
