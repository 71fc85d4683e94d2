"""Explains why llama.cpp's converter could not use a model.

Its classes assert, look up and name tensors as their authors' models needed it; their exceptions
rarely say more than a key. The line of code that raised one says more.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from exporter.core.contents import foreign_contents
from exporter.core.errors import CheckpointError, InputError, UnsupportedError

# exceptions of the converter's classes for a folder that lacks a part or has another form
UNUSABLE = (
    ValueError, KeyError, TypeError, FileNotFoundError, NotImplementedError, AssertionError,
    AttributeError, IndexError, ZeroDivisionError, RuntimeError, OverflowError,
)  # fmt: skip
CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model",
              "sentencepiece.bpe.model", "tekken.json", "*.tiktoken")  # fmt: skip
"""Files that hold a tokenizer; any one suffices."""
READ_FROM = {
    "preprocessor_config": "preprocessor_config.json",
    "tokenizer_config": "tokenizer_config.json",
    "get_added_vocab": "the tokenizer's added tokens",
    "vision_config": "vision_config of config.json",
    "hparams_vision": "vision_config of config.json",
    "find_vparam": "vision_config of config.json",
    "find_aparam": "audio_config of config.json",
    "_experts[": "the checkpoint",
    "model_tensors": "the checkpoint",
    "hparam": CONFIG,
    "config": CONFIG,
}
"""Part of a line of the converter's code -> the file that the line reads."""
UNPLACED = re.compile(r"(Can not map tensor|Unprocessed \w+:) \[?'(?P<name>[^']+)'", re.IGNORECASE)
"""Start of an error about a tensor that no class of the converter places."""
NONE_OF = "could not find any of: "
LOOKUPS = ("find_hparam", "find_vparam", "find_aparam", "_find_param")
OTHER_FORMAT = "`--to safetensors` writes the whole merged model for transformers"
INCOMPLETE = "is the folder complete, with config.json and the tokenizer's files?"


def unknown_architecture(architecture: str) -> UnsupportedError:
    return UnsupportedError(
        f"llama.cpp's converter does not know the architecture {architecture!r}",
        hint="it cannot become a GGUF; `--to safetensors` writes the merged model for transformers",
    )


def unusable(folder: Path, architecture: str, error: Exception) -> InputError:
    """The error for a converter that stopped: a missing file, or an unsupported model.

    folder: the base's; error: the exception of a class of the converter.
    """
    if damaged := damaged_tokenizer(folder):
        return damaged
    missing = missing_file(folder, error)
    what = f"{missing} is missing" if missing else reason(error)
    message = f"llama.cpp's converter cannot use `{folder}` ({architecture}): {what}"
    if not (folder / CONFIG).is_file() or not has_tokenizer(folder):
        return CheckpointError(message, hint=INCOMPLETE)
    if missing:
        return CheckpointError(
            message, hint=f"add {missing}, which the model's page on the hub has"
        )
    return UnsupportedError(message, hint=OTHER_FORMAT)


def has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZERS)


def damaged_tokenizer(folder: Path) -> CheckpointError | None:
    """The error for a tokenizer file that is a git-lfs pointer, a web page or empty."""
    for path in sorted(path for pattern in TOKENIZERS for path in folder.glob(pattern)):
        if found := foreign_contents(path):
            return CheckpointError(f"`{path}` {found.what}", hint=found.hint)
    return None


def missing_file(folder: Path, error: Exception) -> str:
    """The file that an error concerns and the folder lacks; empty without one."""
    if isinstance(error, FileNotFoundError) and error.filename:
        name = Path(str(error.filename)).name
    else:
        name = looked_in(error)
    return "" if not Path(name).suffix or (folder / name).exists() else name


def looked_in(error: Exception) -> str:
    """The file that the converter's line reads when it does not find a key."""
    if not isinstance(error, KeyError):
        return ""
    line, _ = raised_at(error)
    return next((file for mark, file in READ_FROM.items() if mark in line), "")


def reason(error: Exception) -> str:
    """Describe what the converter looked for and did not find."""
    line, place = raised_at(error)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if found := UNPLACED.match(text):
        return f"llama.cpp has no place for the tensor `{found['name']}`"
    if isinstance(error, KeyError) and (" " not in text or text.startswith(NONE_OF)):
        name, where = text.removeprefix(NONE_OF), looked_in(error)
        return f"it looks for `{name}`{f' in {where}' * bool(where)}, which is not there ({place})"
    if isinstance(error, AssertionError) and not text:
        return f"it expects `{line.removeprefix('assert').strip()}` ({place})"
    if isinstance(error, KeyError | ValueError | NotImplementedError | AssertionError) and text:
        return text
    return f"{type(error).__name__}: {text} at `{line}` ({place})"


def raised_at(error: Exception) -> tuple[str, str]:
    """The converter's line that raised an error, and its file and number."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent.name == "conversion" and frame.name not in LOOKUPS
    ]
    if not frames:
        return "", "outside conversion/"
    frame = frames[-1]
    line = (frame.line or "").partition("  #")[0].strip()
    return line, f"conversion/{Path(frame.filename).name}:{frame.lineno}"
