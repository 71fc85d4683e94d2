"""The full verification: what a GGUF answers, beside the model that was trained.

The reference is the unmerged forward of transformers and peft in float32; the GGUF runs in
llama.cpp, with an exact cache. Both read the same tokens.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import InputError, UnsupportedError
from exporter.core.events import Progress, Report, Step, silent
from exporter.core.gguf import read_gguf
from exporter.core.types import FTYPES
from exporter.pipeline import ExportRequest, export
from exporter.steps import MergePlan
from exporter.toolchain import Toolchain
from exporter.verify.engine import gguf_logits
from exporter.verify.report import Check
from exporter.verify.unmerged import unmerged

if TYPE_CHECKING:
    import numpy as np

    Logits = Iterable[np.ndarray[Any, Any]]

CHUNK = 256  # tokens read at once
MOST_TOKENS = 2048  # of a text, unless asked for more
FEWEST = 2

MOST_KL = {
    "F32": 1e-6, "BF16": 5e-3, "F16": 1e-4, "Q8_0": 5e-3, "Q6_K": 0.01, "Q5_K_M": 0.03,
    "Q5_K_S": 0.03, "Q5_0": 0.05, "Q5_1": 0.05, "Q4_K_M": 0.2, "Q4_K_S": 0.25, "Q4_0": 0.3,
    "Q4_1": 0.3, "IQ4_NL": 0.25, "IQ4_XS": 0.25, "Q3_K_L": 0.3, "Q3_K_M": 0.4, "Q3_K_S": 0.6,
    "IQ3_M": 0.6, "IQ3_S": 0.6, "Q2_K": 1.5,
}  # fmt: skip
"""Mean KL divergence in nats that a quantization may have: some times what models of 1 to 8
billion parameters are known for, as small ones lose more."""
WORST_KL = 3.0
BASES_SHARE, BASES_EXTRA = 2.0, 1e-3
"""With --against-base: so many times the base's own divergence, and so much more."""
MOST_LOGIT = 1e-3  # of the largest logit: what two orders of float32 sums may differ, for F32


@dataclass(frozen=True, slots=True)
class Distance:
    """How far one model's predictions are from another's, over the same tokens."""

    tokens: int
    kl: float
    """Mean Kullback-Leibler divergence from the reference, in nats."""
    kl_max: float
    logit: float
    """Largest difference of a logit."""
    logit_size: float
    """Largest logit of the reference."""
    top1: float
    """Of the tokens, how many have the same most likely successor."""
    perplexity: float
    reference_perplexity: float


def split_text(
    text: str, tokenizer: Any, *, context: int, most: int = MOST_TOKENS
) -> list[list[int]]:
    """A text as chunks of tokens, each with what the tokenizer begins a text with."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:most]
    step = max(FEWEST, min(CHUNK, context) - len(begin))
    chunks = [begin + ids[at : at + step] for at in range(0, len(ids), step)]
    chunks = [chunk for chunk in chunks if len(chunk) > FEWEST]
    if not chunks:
        raise InputError("the text is too short to say anything", hint="a page is enough")
    return chunks


def verify_full(
    path: Path,
    plan: MergePlan,
    chunks: Sequence[Sequence[int]],
    toolchain: Toolchain,
    *,
    against_base: bool = False,
    most_kl: float | None = None,
    report: Report = silent,
) -> Check:
    """Compare logits over some chunks of tokens.

    against_base: also quantize the base alone, and allow the GGUF about what that one loses;
    most_kl: the limit, instead of the quantization's own.
    """
    started = time.monotonic()
    quant = quantization(path)
    with tempfile.TemporaryDirectory(prefix="decant-") as folder:
        kept = Kept(Path(folder))
        report(Step("running transformers and peft, unmerged"))
        with unmerged(plan, report=report) as model:
            base = kept.keep("base", counted(model.logits(chunks), chunks, "base", report))
            tuned = base
            if plan.adapters:
                model.adapt()
                named = "base + adapter"
                tuned = kept.keep("tuned", counted(model.logits(chunks), chunks, named, report))
        report(Step("running the GGUF"))
        found = compare(
            kept.read(tuned), counted(gguf_logits(path, chunks, toolchain), chunks, "GGUF", report),
            chunks,
        )  # fmt: skip
        plain = compare(kept.read(tuned), kept.read(base), chunks)
        of_base = None
        if against_base:
            alone = quantized_base(plan, quant, Path(folder), toolchain, report)
            of_base = compare(kept.read(base), gguf_logits(alone, chunks, toolchain), chunks)
    limit = most_kl if most_kl is not None else limit_for(quant, of_base)
    return judge(found, plain, of_base, limit, quant, time.monotonic() - started)


def quantization(path: Path) -> str:
    """The file's own name for how it is quantized; empty for one decant does not make."""
    number = read_gguf(path).number("general.file_type")
    return next((name for name, ftype in FTYPES.items() if ftype == number), "")


def quantized_base(
    plan: MergePlan, quant: str, folder: Path, toolchain: Toolchain, report: Report
) -> Path:
    """The base alone, quantized as the file is."""
    if not quant:
        raise UnsupportedError(
            "the file is quantized in a way that the base cannot be alike",
            hint="leave out --against-base",
        )
    report(Step("quantizing the base alone"))
    path = folder / "base.gguf"
    export(ExportRequest((), plan.checkpoint.folder, (quant,), (path,)), toolchain, report=report)
    return path


def limit_for(quant: str, of_base: Distance | None) -> float:
    if of_base is not None:
        return BASES_SHARE * of_base.kl + BASES_EXTRA
    return MOST_KL.get(quant, WORST_KL)


@dataclass(frozen=True, slots=True)
class Kept:
    """Logits on disk: of a large vocabulary they would not fit in memory."""

    folder: Path

    def keep(self, name: str, logits: Logits) -> list[Path]:
        import numpy as np

        paths = []
        for number, chunk in enumerate(logits):
            paths.append(self.folder / f"{name}-{number}.npy")
            np.save(paths[-1], chunk)
        return paths

    def read(self, paths: list[Path]) -> Logits:
        import numpy as np

        return (np.load(path) for path in paths)


def counted(
    logits: Logits, chunks: Sequence[Sequence[int]], task: str, report: Report
) -> Iterator[np.ndarray[Any, Any]]:
    for number, chunk in enumerate(logits):
        yield chunk
        report(Progress(task, number + 1, len(chunks), "steps"))


def compare(reference: Logits, other: Logits, chunks: Sequence[Sequence[int]]) -> Distance:
    """Distances over all tokens that have a successor in their chunk."""
    import numpy as np

    divergences, agreeing, losses = [], [], []
    largest = size = 0.0
    for one, two, chunk in zip(reference, other, chunks, strict=True):
        width = min(one.shape[1], two.shape[1])  # llama.cpp may fill a vocabulary up
        a, b = (values[:-1, :width].astype(np.float64) for values in (one, two))
        log_a, log_b = log_softmax(a), log_softmax(b)
        divergences.append((np.exp(log_a) * (log_a - log_b)).sum(axis=1))
        agreeing.append(a.argmax(axis=1) == b.argmax(axis=1))
        places = np.arange(len(a)), np.array(chunk[1:])
        losses.append((-log_a[places], -log_b[places]))
        largest = max(largest, float(np.abs(a - b).max()))
        size = max(size, float(np.abs(a).max()))
    kl = np.concatenate(divergences)
    own, others = (np.concatenate(part) for part in zip(*losses, strict=True))
    return Distance(
        len(kl), float(kl.mean()), float(kl.max()), largest, size,
        float(np.concatenate(agreeing).mean()), math.exp(others.mean()), math.exp(own.mean()),
    )  # fmt: skip


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def judge(
    found: Distance,
    plain: Distance,
    of_base: Distance | None,
    limit: float,
    quant: str,
    seconds: float,
) -> Check:
    """Put the numbers into words, and hold them against the limit."""
    problems = []
    if not found.kl <= limit:  # a NaN is no number to be content with
        problems.append(
            f"its predictions are {found.kl:.3g} nats from the trained model's (mean KL"
            f" divergence over {found.tokens} tokens); at most {limit:.3g} is right for"
            f" {quant or 'this quantization'}"
        )
    if quant == "F32" and not found.logit <= MOST_LOGIT * max(found.logit_size, 1):
        problems.append(f"a logit is {found.logit:.3g} off; in F32 it should be nearly exact")
    numbers = {
        "tokens": found.tokens, "kl": found.kl, "kl_max": found.kl_max, "kl_limit": limit,
        "logit": found.logit, "top1": found.top1, "perplexity_gguf": found.perplexity,
        "perplexity_tuned": found.reference_perplexity, "perplexity_base": plain.perplexity,
        "kl_of_adapter": plain.kl, "seconds": seconds,
    }  # fmt: skip
    detail = (
        f"KL {found.kl:.2g} (limit {limit:.2g}; the adapter's own effect is {plain.kl:.2g}),"
        f" same first choice {found.top1:.1%}, perplexity {plain.perplexity:.4g} base,"
        f" {found.reference_perplexity:.4g} tuned, {found.perplexity:.4g} GGUF"
    )
    if of_base is not None:
        numbers |= {"kl_of_base": of_base.kl, "top1_of_base": of_base.top1}
        detail += f"; the base quantized alike: KL {of_base.kl:.2g}, {of_base.top1:.1%}"
    return replace(Check("logits", tuple(problems), detail), numbers=numbers)
