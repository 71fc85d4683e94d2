"""Runs the build's llama.cpp over one GGUF in a child process: an abort ends only the child."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from typing_extensions import Self

from exporter.core.errors import EngineDiedError, EngineError, ModelError, SpaceError
from exporter.core.machine import cores
from exporter.llamacpp.toolchain import NO_GPU, scrubbed

if TYPE_CHECKING:
    import numpy as np

    from exporter.llamacpp.toolchain import Toolchain

LAST_LINES = 4  # lines shown of the child's messages; further ones are addresses
# ggml prints a stack trace before it aborts, with a debugger if it finds one
QUIET = {"GGML_NO_BACKTRACE": "1", "PYTHONFAULTHANDLER": "", **NO_GPU}


class LogitsEngine:
    """A child process with llama.cpp; used as a context manager."""

    def __init__(self, toolchain: Toolchain) -> None:
        argv = [
            sys.executable, "-m", "exporter.verify.logits_engine_child",
            str(toolchain.folder), str(toolchain.library("llama")), str(cores()),
        ]  # fmt: skip
        where = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        self.path = Path()
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**scrubbed(os.environ), **QUIET, "PYTHONPATH": where},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.process.wait()
        self.stderr.close()

    def ask(self, verb: str, **arguments: object) -> Any:
        """Let the child do something and return its answer.

        Raises EngineDiedError, with its last words, if it dies, SpaceError if it is killed,
        ModelError or EngineError if llama.cpp refuses.
        """
        self.begin(verb, **arguments)
        return self.answer(verb)

    def begin(self, verb: str, **arguments: object) -> None:
        """Start a request; `answer` must follow."""
        line = json.dumps({"verb": verb, "with": arguments}).encode() + b"\n"
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` reports how it died
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def answer(self, verb: str) -> Any:
        """Wait for the answer to a request.

        Raises EngineDiedError, SpaceError, ModelError or EngineError as `ask` does.
        """
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer.endswith(b"\n"):
            status = self.process.wait()
            if status == -signal.SIGKILL:
                raise SpaceError(
                    f"llama.cpp was killed {DOING[verb]} `{self.path}`, as happens where memory"
                    " runs out",
                    hint="is memory left? other programs may be closed",
                )
            how = ending(status)
            raise EngineDiedError(f"llama.cpp {how} {DOING[verb]} `{self.path}`{self.last_words()}")
        found = json.loads(answer)
        if "error" in found:
            error = ModelError if verb in ("load", "project") else EngineError
            raise error(found["error"] + self.last_words())
        return found["answer"]

    def last_words(self) -> str:
        """llama.cpp's last messages, as the end of a sentence."""
        self.stderr.seek(0)
        lines = [line.strip() for line in self.stderr.read().decode(errors="replace").splitlines()]
        last_words = list(dict.fromkeys(line for line in lines if line))[-LAST_LINES:]
        return "; its last words:\n    " + "\n    ".join(last_words) if last_words else ""

    def load(self, path: Path, *, vocab_only: bool = False) -> None:
        """Load a GGUF, or its vocabulary alone.

        Raises ModelError if llama.cpp refuses it, EngineDiedError if it dies.
        """
        self.begin_load(path, vocab_only=vocab_only)
        self.finish_load()

    def begin_load(self, path: Path, *, vocab_only: bool = False) -> None:
        """Start to load; `finish_load` must follow."""
        self.path = path
        self.begin("load", path=str(path.absolute()), vocab_only=vocab_only)

    def finish_load(self) -> None:
        """Wait until the file is loaded. Raises the errors of `load`."""
        self.answer("load")

    def facts(self) -> VocabularyFacts:
        found = self.ask("facts")
        return VocabularyFacts(found["special"], found["texts"], frozenset(found["ends"]))

    def encode(
        self, texts: Sequence[str], *, special: bool = False, parse: bool = True
    ) -> list[list[int]]:
        """Token ids of each text. special: add BOS and EOS; parse: recognize special tokens."""
        found: list[list[int]] = self.ask("encode", texts=list(texts), special=special, parse=parse)
        return found


DOING = {
    "load": "while it loaded",
    "facts": "over the vocabulary of",
    "encode": "over a text with",
    "probe": "while it computed some tokens with",
    "logits": "while it computed with",
    "project": "while it encoded a picture or a sound beside",
}
"""The child's work when it died, before the file's name in a message."""


@dataclass(frozen=True, slots=True)
class VocabularyFacts:
    """llama.cpp's view of a GGUF's special tokens."""

    special: dict[str, int]
    """Ids by name: bos, eos, eot, sep, pad, mask; -1 for none."""
    texts: dict[str, str]
    ends: frozenset[int]
    """Tokens that end a generation."""


def ending(status: int) -> str:
    """How a process ended, as the predicate of "llama.cpp"."""
    if status >= 0:
        return f"ended with {status}"
    try:
        return f"died of {signal.Signals(-status).name}"
    except ValueError:
        return f"died of signal {-status}"


def gguf_logits(
    path: Path, chunks: Sequence[Sequence[int]], toolchain: Toolchain
) -> Iterator[np.ndarray[Any, Any]]:
    """The logits after every token of each chunk, (tokens, vocabulary) in float32.

    Each chunk starts with an empty cache. Raises ModelError if llama.cpp cannot load the file,
    EngineError if it cannot compute.
    """
    import numpy as np

    longest = max(map(len, chunks))
    with LogitsEngine(toolchain) as engine, tempfile.TemporaryDirectory(prefix="decant-") as folder:
        written = Path(folder) / "logits"
        engine.load(path)
        for chunk in chunks:
            size = engine.ask("logits", chunk=list(chunk), path=str(written), length=longest)
            yield np.fromfile(written, np.float32).reshape(size["rows"], size["width"])
