"""Loads a folder's tokenizer as transformers does, which may differ from its files.

Some classes of transformers rebuild the tokenizer from the vocabulary alone: an old Llama's
tokenizer.json puts a space before every text, and its class only before some.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from exporter.core.errors import CheckpointError
from exporter.inputs.tokenizer_memo import MEMO, TokenizerFiles
from exporter.llamacpp.normalizer import FIRST, ONCE, SPACE, Step, flat
from exporter.llamacpp.normalizer_limits import problem_of

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, IndexError,
    ZeroDivisionError, StrictDataclassError,
)  # fmt: skip
"""Exceptions of transformers for a folder without a usable tokenizer or config."""

PIECES = "tokenizer.model"
RUST_PANIC = "PanicException"
"""Name of the exception, besides a bare Exception, that tokenizers raises for an unreadable
file.
"""


class LoadedTokenizer:
    """transformers' tokenizer of a folder, and its parts in the form of tokenizer.json."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap transformers' tokenizer, which must have a backend in Rust."""
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer

    @cached_property
    def written(self) -> dict[str, Any]:
        """The whole tokenizer.json; takes seconds for a large vocabulary."""
        whole: dict[str, Any] = json.loads(self.backend.to_str())
        return whole

    @property
    def kind(self) -> str:
        """The model type: BPE, Unigram or WordPiece."""
        return type(self.backend.model).__name__

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """All tokens with their ids, added ones included."""
        return dict(self.tokenizer.get_vocab())

    @cached_property
    def added(self) -> dict[int, Any]:
        """The added tokens by id: content, special, normalized, lstrip, rstrip, single_word."""
        return dict(self.tokenizer.added_tokens_decoder)

    def steps(self, part: str) -> list[Step]:
        """The single steps of a part, "normalizer" or "pre_tokenizer", in order."""
        found = self.part(part)
        if found is None:
            return []
        if part == "normalizer":
            return list(flat(found))
        return list(found.get("pretokenizers") or [found])

    def part(self, name: str) -> Step | None:
        """The JSON of one part; None without it."""
        held = getattr(self.backend, name)
        return json.loads(held.__getstate__()) if held is not None else None

    def special(self, role: str) -> int | None:
        """The id of bos, eos, unk, pad…; None where the tokenizer has no single id for it."""
        found = getattr(self.tokenizer, f"{role}_token_id", None)
        return found if isinstance(found, int) else None


def load_tokenizer(
    folder: Path, *, trust_remote_code: bool = False, files: TokenizerFiles | None = None
) -> LoadedTokenizer | None:
    """Load transformers' tokenizer of `folder`; None if there is none, or only one in Python.

    files: the folder's tokenizer files, if hashed already. Raises CheckpointError for a damaged
    tokenizer.json, and for one whose normalizer would fill the memory.
    """
    config = kind_alone(folder)
    options = {"config": config} if config else {}
    try:
        found = MEMO.load(files or folder, trust_remote_code=trust_remote_code, **options)
    except UNREADABLE:
        return None  # the converter reports the reason, or reads the vocabulary itself
    except BaseException as error:
        is_its_own = type(error) is Exception or type(error).__name__ == RUST_PANIC
        if not is_its_own and not isinstance(error, RecursionError):  # nested too deeply
            raise
        raise CheckpointError(
            f"the tokenizers library cannot read the tokenizer in `{folder}`: {error}",
            hint="copy or download tokenizer.json again; or a newer transformers wrote it",
        ) from error
    if not hasattr(found, "backend_tokenizer"):
        return None
    loaded = LoadedTokenizer(found)
    if problem := problem_of(loaded.steps("normalizer"), patterns=False):
        raise CheckpointError(
            f"the normalizer of the tokenizer in `{folder}` is refused: {problem}",
            hint="it is no usual one: is the model from a place you trust?",
        )
    return LoadedTokenizer(merged_by_score(found, folder))


def merged_by_score(tokenizer: Any, folder: Path) -> Any:
    """transformers' tokenizer with its merges in the order of the pieces' scores.

    From a tokenizer.model alone, transformers 5 orders merges by id: it then splits the spaces
    before code differently from sentencepiece, with which the model was trained, and from the
    tokenizer.json that older versions write for the same file.
    """
    pieces, whole = folder / PIECES, folder / "tokenizer.json"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or whole.is_file() or not pieces.is_file():
        return tokenizer
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    written = json.loads(backend.to_str())
    if written["model"].get("type") != "BPE":
        return tokenizer
    held = SentencePieceProcessor(str(pieces))
    vocabulary = written["model"]["vocab"]
    scores = {
        text: held.GetScore(number)
        for text, number in vocabulary.items()
        if number < held.vocab_size() and not held.IsControl(number) and not held.IsByte(number)
    }
    written["model"]["merges"] = generate_merges(vocabulary, scores)
    ordered = copy(tokenizer)  # the converter reads the one that transformers gives
    ordered._tokenizer = Tokenizer.from_str(json.dumps(written))  # noqa: SLF001 - its backend
    return ordered


def kind_alone(folder: Path) -> Any:
    """A minimal config that makes transformers choose the same tokenizer class as the whole one.

    A whole config imports torch's compiler, which takes longer than the rest of a plan. None if
    tokenizer_config.json names no class: then transformers needs the config's class.
    """
    from transformers import PreTrainedConfig

    configs = [read_object(folder / name) for name in ("config.json", "tokenizer_config.json")]
    if not configs[1].get("tokenizer_class"):
        return None
    config = PreTrainedConfig()
    config.model_type = str(configs[0].get("model_type", ""))
    config.tokenizer_class = configs[0].get("tokenizer_class")
    config._name_or_path = str(folder)  # noqa: SLF001 - as its loader sets it
    return config


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def space_before(loaded: LoadedTokenizer, *, in_chats: bool) -> tuple[bool, str | None]:
    """Whether llama.cpp should put a space before texts, and the value of SPACE_PREFIX.

    llama.cpp puts it before a text and again after each special token, or nowhere. in_chats:
    whether there is a chat template, so that text after special tokens must be right.
    """
    for step in loaded.steps("normalizer"):
        if step["type"] == "Prepend" and step.get("prepend") == SPACE:
            return True, None
    for place, step in enumerate(loaded.steps("pre_tokenizer")):
        if step["type"] == "Metaspace":
            return of_scheme(step, in_chats=in_chats)
        if step["type"] == "ByteLevel" and step.get("add_prefix_space") and place == 0:
            return False, FIRST  # llama.cpp puts none before byte-level text
    return False, None


def of_scheme(metaspace: Mapping[str, Any], *, in_chats: bool) -> tuple[bool, str | None]:
    """The result of `space_before` for a Metaspace, which adds no second space."""
    match metaspace.get("prepend_scheme", "always"):
        case "always":
            return True, ONCE
        case "first":
            return (False, FIRST) if in_chats else (True, ONCE)
        case _:
            return False, None


def first_ids(loaded: LoadedTokenizer) -> tuple[list[int], list[int]]:
    """Ids of the special tokens that the tokenizer puts before and after a text."""
    text = "a"
    whole = loaded.tokenizer(text, add_special_tokens=True)["input_ids"]
    own = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    for head in range(len(whole) - len(own) + 1):
        if whole[head : head + len(own)] == own:
            return whole[:head], whole[head + len(own) :]
    return [], []


def templates_of(loaded: LoadedTokenizer) -> dict[str, str]:
    """Chat templates by name; "default" is used unless another is requested."""
    found = loaded.tokenizer.chat_template
    if isinstance(found, str):
        return {"default": found}
    return {str(name): str(text) for name, text in found.items()} if found else {}


def template_tokens(loaded: LoadedTokenizer) -> dict[str, str]:
    """The special tokens that transformers passes to a template, by their template names."""
    found = loaded.tokenizer.special_tokens_map
    return {str(name): text for name, text in found.items() if isinstance(text, str)}


def texts_of(templates: Iterable[str]) -> str:
    return "\n".join(templates)
