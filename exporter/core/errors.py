"""Every error decant raises on purpose, and the exit code each family ends with.

    DecantError
    ├── InputError        3  the input cannot be used
    │   ├── AdapterError
    │   ├── CheckpointError
    │   ├── ModelError
    │   └── UnsupportedError
    ├── ToolchainError    4  llama.cpp or a Python package is missing or did not build
    ├── SpaceError        5  not enough disk or memory
    ├── DownloadError     6  the bytes did not arrive or have another hash
    ├── UploadError       6  the hub did not take the bytes
    ├── VerifyError       7  the result differs too much from its reference
    ├── OutputError       8  the output exists, is in use or cannot be written
    └── EngineError       9  the model could not be loaded or stopped answering
        ├── EngineDiedError
        ├── WorkerError
        └── ContextFullError

1 is a bug in decant, 2 a mistyped command line (click's own), 130 Ctrl-C.
A message says what happened, with the value; the hint says what to do.
"""

from __future__ import annotations

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class DecantError(Exception):
    """The root: a message, perhaps a hint, and the exit code of its family."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(DecantError):
    """The input cannot be used."""

    exit_code = 3


class AdapterError(InputError):
    """The adapter folder is incomplete, damaged or made for another base."""


class CheckpointError(InputError):
    """The base model's folder is incomplete or damaged."""


class ModelError(InputError):
    """A GGUF, or the name of one, that cannot be read or found."""


class AdapterRepoError(ModelError):
    """A hub repo that was named as a model holds an adapter and no GGUF."""


class UnsupportedError(InputError):
    """Well-formed input of a kind that decant cannot turn into this output."""


class ToolchainError(DecantError):
    """llama.cpp, a compiler or a Python package is missing or broken."""

    exit_code = 4


class SpaceError(DecantError):
    """Not enough disk or memory; raised before the work begins."""

    exit_code = 5


class DownloadError(DecantError):
    """The requested bytes did not arrive, or have another hash than announced."""

    exit_code = 6


class UploadError(DecantError):
    """The hub cannot be reached, refuses the upload, or did not store all of it."""

    exit_code = 6


class VerifyError(DecantError):
    """The result differs from its reference by more than the limit."""

    exit_code = 7


class OutputError(DecantError):
    """The output exists, is being written by another process, or cannot be written."""

    exit_code = 8


class EngineError(DecantError):
    """The model could not be loaded, or stopped answering."""

    exit_code = 9


class EngineDiedError(EngineError):
    """The engine's process ended by itself; a new one may be started."""


class TemplateRefusedError(EngineDiedError):
    """llama-server does not start with the model's chat template."""


class WorkerError(EngineError):
    """Another machine that should compute a part of the model is absent or unfit."""


class ContextFullError(EngineError):
    """The conversation is longer than the model's context."""

    def __init__(self, message: str, *, hint: str, prompt: int, context: int) -> None:
        super().__init__(message, hint=hint)
        self.prompt = prompt
        """Tokens of the conversation."""
        self.context = context
        """Tokens of the context."""
