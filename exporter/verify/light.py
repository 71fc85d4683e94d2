"""The light verification: it takes seconds, and no more memory for the base than the export."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from exporter.core.errors import EngineError, ModelError, SpaceError
from exporter.core.events import Report, Warn, silent
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.core.silence import no_collection
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.operations import MergePlan
from exporter.verify.expected import Expected
from exporter.verify.kept_checks import KeptChecks
from exporter.verify.loading import check_loading, not_loaded, shortage, unloadable
from exporter.verify.logits_engine import LogitsEngine
from exporter.verify.metadata import check_metadata, check_special, check_template
from exporter.verify.token_list import VocabularyFindings, compare_vocabulary
from exporter.verify.tokenization import check_tokens
from exporter.verify.verification import Check, Verification

WHOLE = sys.maxsize  # items to read of a metadata array
EMBEDDING = "token_embd.weight"


def verify_light(
    path: Path,
    expected: Expected,
    toolchain: Toolchain,
    *,
    again: bool = True,
    report: Report = silent,
) -> Verification:
    """Check one file's weights, tokenizer, template and settings, and load it once in llama.cpp.

    again: whether to check a tokenizer whose like was found right. Raises ModelError for a file
    that is not a GGUF.
    """
    started = time.monotonic()
    with no_collection(), LogitsEngine(toolchain) as engine:  # it starts while the header is read
        file = read_gguf(path, keep_items=WHOLE)
        too_large = shortage(file)
        engine.begin_load(path, vocab_only=bool(too_large))
        # meanwhile, the checks that need no llama.cpp:
        for warning in strangers(file, expected.plan):
            report(Warn(warning))
        weights = expected.weights(file).check(file, report=report)
        kept = KeptChecks(file, expected, toolchain, rows_of(expected))
        checks = [] if again else kept.read()
        vocabulary = None if checks else vocabulary_of(file, expected)
        settings = check_metadata(file, expected.conversion, expected.folder)
        try:
            engine.finish_load()
            if vocabulary is not None:
                checks = tokenizer_checks(engine, file, expected, vocabulary)
                kept.keep(checks)
            loading = not_loaded(too_large) if too_large else check_loading(engine, file)
        except (EngineError, ModelError) as error:
            loading = unloadable(error)
        except SpaceError as error:
            loading = not_loaded(error.message)
    found = (weights, *checks, settings, loading)
    return Verification(path, found, time.monotonic() - started)


def vocabulary_of(file: GGUFFile, expected: Expected) -> VocabularyFindings:
    return compare_vocabulary(file, expected.tokenizer, expected.whole, rows_of(expected))


def tokenizer_checks(
    engine: LogitsEngine, file: GGUFFile, expected: Expected, vocabulary: VocabularyFindings
) -> list[Check]:
    """The checks that compare llama.cpp's tokenizer with transformers'."""
    facts, tokenizer = engine.facts(), expected.tokenizer
    return [
        check_tokens(engine, facts, file, expected, vocabulary),
        check_special(facts, file, tokenizer, expected.folder),
        check_template(file, facts, tokenizer),
    ]


def rows_of(expected: Expected) -> int:
    """Rows of the model's embedding."""
    slots = expected.conversion.slots
    return next((slot.shape[0] for slot in slots if slot.name == EMBEDDING), sys.maxsize)


def strangers(file: GGUFFile, plan: MergePlan) -> list[str]:
    """Warnings if the file names another base or other adapters than it is compared with."""
    differences = []
    base = file.text("decant.base")
    if base is not None and base != plan.checkpoint.name:
        differences.append(
            f"the file was made from the base {base!r}, not {plan.checkpoint.name!r}"
        )
    for number, weighted in enumerate(plan.adapters):
        key = f"decant.adapter{number or ''}"
        made_with, hashed = file.text(key), file.text(f"{key}.sha256")
        if base is not None and hashed != weighted.adapter.sha256():
            with_what = f"with the adapter {made_with!r}" if made_with else "without that adapter"
            differences.append(
                f"the file was made {with_what}, not with `{weighted.adapter.folder}`"
            )
        scale = file.text(f"{key}.scale")
        if scale is not None and scale != f"{weighted.scale:g}":
            differences.append(
                f"the file holds {made_with!r} at scale {scale}, not {weighted.scale:g}"
            )
    if base is not None and (more := file.text(f"decant.adapter{len(plan.adapters) or ''}")):
        differences.append(f"the file was also made with the adapter {more!r}, which is not given")
    return differences
