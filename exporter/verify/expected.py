"""The expected result of a merge plan, which the verification compares a file with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from exporter.convert.gguf_layout import Conversion
from exporter.convert.to_gguf import ModelPart, convert
from exporter.core.gguf import GGUFFile
from exporter.core.silence import no_collection, one_thread, quiet_libraries
from exporter.inputs.tokenizer import LoadedTokenizer, load_tokenizer
from exporter.inputs.tokenizer_memo import MEMO
from exporter.llamacpp.converter_import import imported
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.apply import MergedTensors
from exporter.merge.operations import MergePlan
from exporter.merge.result_files import result_folder
from exporter.quantize.quantizer import Quantizer
from exporter.verify.rows import Reference
from exporter.verify.strength import Requantizer
from exporter.verify.trace import traceable
from exporter.verify.weights import ExpectedWeights

ROWS = 16
"""Rows of each tensor that are computed again, by default."""
MERGE_DTYPE = "decant.merge_dtype"
MERGED_EXACTLY = "float32"
IMATRIX = "quantize.imatrix."  # prefix of llama-quantize's keys


class FolderTokenizer:
    """transformers' tokenizer of a folder, loaded when it is first used."""

    def __init__(self, folder: Path, found: LoadedTokenizer | None, trusted: bool) -> None:
        """found: the tokenizer, if it is loaded already; trusted: whether its code may run."""
        self.folder, self.found, self.trusted = folder, found, trusted

    @cached_property
    def loaded(self) -> LoadedTokenizer | None:
        """The tokenizer; None for one in Python only."""
        return self.found or load_tokenizer(self.folder, trust_remote_code=self.trusted)

    @cached_property
    def tokenizer(self) -> Any:
        """The object of transformers."""
        if self.loaded is not None:
            return self.loaded.tokenizer
        return MEMO.load(self.folder, trust_remote_code=self.trusted)

    @cached_property
    def whole(self) -> Mapping[str, Any]:
        """tokenizer.json as transformers has loaded it; empty for a tokenizer in Python only."""
        with no_collection():
            return self.loaded.written if self.loaded is not None else {}


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected result of a plan: its layout, rows on demand, folder and tokenizer."""

    plan: MergePlan
    conversion: Conversion
    folder: Path
    tokens: FolderTokenizer
    rows: int
    requantizer: Requantizer

    @property
    def tokenizer(self) -> Any:
        return self.tokens.tokenizer

    @property
    def whole(self) -> Mapping[str, Any]:
        """tokenizer.json as transformers has loaded it; empty for a tokenizer in Python only."""
        return self.tokens.whole

    def weights(self, file: GGUFFile) -> ExpectedWeights:
        return ExpectedWeights(
            self.conversion,
            Reference(self.plan),
            self.rows,
            self.requantizer,
            rounded=file.text(MERGE_DTYPE) != MERGED_EXACTLY,
            by_importance=any(key.startswith(IMATRIX) for key in file.metadata),
        )


@contextmanager
def expected_of(
    plan: MergePlan,
    toolchain: Toolchain,
    *,
    rows: int = ROWS,
    trust_remote_code: bool = False,
) -> Iterator[Expected]:
    """Lay the plan's model out once, for all files made from it. Reads no weight."""
    with laid_out(plan, toolchain, "text", trust_remote_code) as (conversion, folder):
        tokens = FolderTokenizer(folder, conversion.loaded, trust_remote_code)
        requantizer = Requantizer(Quantizer.load(toolchain))
        yield Expected(plan, conversion, folder, tokens, rows, requantizer)


@contextmanager
def laid_out(
    plan: MergePlan, toolchain: Toolchain, part: ModelPart, trust_remote_code: bool
) -> Iterator[tuple[Conversion, Path]]:
    """Lay a part of the plan's model out with the converter; yields it with its folder.

    Reads no weight.
    """
    tensors = traceable(MergedTensors(plan))
    with (
        imported(toolchain),
        quiet_libraries(),
        one_thread(),
        result_folder(plan, trust_remote_code=trust_remote_code) as folder,
    ):
        yield convert(
            tensors, folder, toolchain, model_name="verify", part=part,
            trust_remote_code=trust_remote_code,
        ), folder  # fmt: skip
