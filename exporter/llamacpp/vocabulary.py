"""Tokenizes with a GGUF's vocabulary, through llama.cpp's bindings from the build."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.abc import Loader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from exporter.core.errors import ModelError, SpaceError, ToolchainError
from exporter.llamacpp.toolchain import without_gpus

if TYPE_CHECKING:
    from exporter.llamacpp.toolchain import Toolchain

PACKAGE = "llama_cpp"
LIBRARIES = "LLAMA_CPP_LIB_PATH"  # the bindings read it when they are imported
ROOM = 64  # bytes, enough for most pieces
SHALLOW = 4096  # bytes of text that fit on any stack
DEPTH = 2048  # bytes of stack per byte of a longer text; reserved, used only as needed
DEEPEST = 4 << 30  # bytes of stack in all, for a word of some 8 MB


def load_bindings(toolchain: Toolchain) -> Any:
    """llama-cpp-python's ctypes layer over the build's own libraries, without logging.

    Raises ToolchainError when they do not load.
    """
    before = os.environ.get(LIBRARIES)
    os.environ[LIBRARIES] = str(toolchain.library("llama").parent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            llama_cpp = ctypes_layer(toolchain.folder / "python" / "llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ToolchainError(
            f"cannot use llama.cpp's bindings: {error}",
            hint="rebuild it with `decant setup --force`",
        ) from error
    finally:
        os.environ.pop(LIBRARIES)
        if before is not None:
            os.environ[LIBRARIES] = before
    kind = llama_cpp.llama_log_callback
    llama_cpp.llama_log_set(ctypes.cast(SILENCE, kind), ctypes.c_void_p(0))
    return llama_cpp


def ctypes_layer(folder: Path) -> ModuleType:
    """The package `llama_cpp` in `folder` with its ctypes layer alone.

    The package itself imports all that is built upon this layer, with numpy and jinja2: it takes
    four times as long. Here, its `Llama` and the like are imported when somebody looks for them.
    Raises ImportError, or what the layer raises.
    """
    if (imported := sys.modules.get(PACKAGE)) is not None:
        return imported
    spec = spec_from_file_location(PACKAGE, folder / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"no package `{folder}`")
    package = module_from_spec(spec)
    sys.modules[PACKAGE] = package
    try:
        layer = importlib.import_module(f"{PACKAGE}.llama_cpp")
    except BaseException:
        del sys.modules[PACKAGE]
        raise
    vars(package).update({
        name: value for name, value in vars(layer).items() if not name.startswith("_")
    })  # fmt: skip
    vars(package)["__getattr__"] = partial(complete, package, spec.loader)
    return package


def complete(package: ModuleType, loader: Loader, name: str) -> Any:
    """A name that the package has beyond its ctypes layer. Raises AttributeError without it."""
    if name.startswith("__") and name != "__version__":  # the import system looks for some
        raise AttributeError(name)
    vars(package).pop("__getattr__", None)
    loader.exec_module(package)
    return getattr(package, name)


def ignore(level: int, text: bytes, data: object) -> None:
    del level, text, data


# referenced for as long as the library may call it
SILENCE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(ignore)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A GGUF's vocabulary, loaded by llama.cpp."""

    bindings: Any  # llama_cpp
    handle: Any  # llama_vocab *

    @property
    def size(self) -> int:
        return int(self.bindings.llama_vocab_n_tokens(self.handle))

    def encode(self, text: str, *, special: bool = False, parse: bool = True) -> list[int]:
        """Token ids of a text. special: add BOS and EOS; parse: recognize special tokens."""
        raw = text.encode()
        room = len(raw) + 16
        while True:
            ids = (ctypes.c_int32 * room)()
            given = (self.handle, raw, len(raw), ids, room, special, parse)
            count = on_deep_stack(partial(self.bindings.llama_tokenize, *given), len(raw))
            if count >= 0:
                return ids[:count]
            room = -count  # some tokenizers write one character as many: U+FDFA as 18

    def piece(self, token: int) -> bytes:
        """The bytes of a token: one byte for a byte token, " The" for ▁The."""
        room = ROOM
        while True:
            piece = ctypes.create_string_buffer(room)
            count = self.bindings.llama_token_to_piece(self.handle, token, piece, room, 0, True)
            if count >= 0:
                return piece.raw[:count]
            room = -count

    def is_special(self, token: int) -> bool:
        """Whether a token has no text: a control token, or the one for unknown text."""
        kinds = self.bindings.LLAMA_TOKEN_ATTR_CONTROL | self.bindings.LLAMA_TOKEN_ATTR_UNKNOWN
        return bool(self.bindings.llama_vocab_get_attr(self.handle, token) & kinds)

    def is_end(self, token: int) -> bool:
        """Whether a token ends a generation."""
        return bool(self.bindings.llama_vocab_is_eog(self.handle, token))

    def adds_bos(self) -> bool:
        return bool(self.bindings.llama_vocab_get_add_bos(self.handle))

    def text(self, token: int) -> str:
        """A token as the vocabulary writes it; empty for -1, the id for no token."""
        found = self.bindings.llama_vocab_get_text(self.handle, token) if token >= 0 else b""
        return (found or b"").decode(errors="replace")

    def special(self, name: str) -> int:
        """The id of bos, eos, eot, sep, pad, mask…; -1 where the vocabulary has none."""
        return int(getattr(self.bindings, f"llama_vocab_{name}")(self.handle))


def on_deep_stack(work: Callable[[], int], count: int) -> int:
    """Call `work`, which may recurse `count` times, on a stack large enough for it.

    Many models' patterns use std::regex, which recurses for each character of a word: a thread's
    usual 8 MB overflow after some ten thousand characters and end the process. Raises SpaceError
    when no such thread can be started.
    """
    if count < SHALLOW:
        return work()
    from concurrent.futures import ThreadPoolExecutor

    before = threading.stack_size(min(DEPTH * count, DEEPEST))
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()
    except RuntimeError as error:  # no thread could be started
        raise SpaceError(
            f"no memory to cut a text of {count} bytes into tokens", hint="give it in parts"
        ) from error
    finally:
        threading.stack_size(before)


@contextmanager
def vocabulary(path: Path, toolchain: Toolchain) -> Iterator[Vocabulary]:
    """Load the vocabulary of a GGUF without its weights. Raises ModelError when llama.cpp fails."""
    with without_gpus():
        bindings = load_bindings(toolchain)
        bindings.llama_backend_init()
        bindings.llama_supports_gpu_offload()  # looks for GPUs, once per process
    settings = bindings.llama_model_default_params()
    settings.vocab_only = True
    model = bindings.llama_model_load_from_file(os.fsencode(path), settings)
    if not model:
        raise ModelError(
            f"llama.cpp cannot load the vocabulary of `{path}`",
            hint="`decant inspect` shows what it holds",
        )
    try:
        yield Vocabulary(bindings, bindings.llama_model_get_vocab(model))
    finally:
        bindings.llama_model_free(model)
