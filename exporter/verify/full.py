"""The full verification: a GGUF's predictions beside the trained model's.

The reference is the unmerged forward of transformers and peft in float32; the GGUF runs in
llama.cpp with a float32 cache. Both read the same tokens.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import (
    EngineError,
    InputError,
    ModelError,
    SpaceError,
    UnsupportedError,
)
from exporter.core.events import Progress, Report, Step, silent
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.llamacpp.toolchain import Toolchain
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import MergePlan
from exporter.verify.distances import Distance, Logits, compare
from exporter.verify.logits_engine import gguf_logits
from exporter.verify.remade import ignored_by_llamacpp, remake
from exporter.verify.unmerged import unmerged
from exporter.verify.verification import Check

if TYPE_CHECKING:
    import numpy as np

CHUNK = 256  # tokens per forward
MOST_TOKENS = 2048  # read of a text, by default
FEWEST = 2

TIMES, EXTRA = 2.0, 1e-3
"""Limit of a file's mean KL divergence in nats: TIMES the loss of the same values when they are
requantized, plus EXTRA. With --against-base it is the loss of the base alone, quantized in the same
way, that is multiplied.
"""
COMPARED = 2  # chunks over which the remade models run
EXACT_LOGITS = {"F32": 0.01, "F16": 0.1}
"""Largest deviation of most tokens' logits without quantization, by the weights' type.

It is relative to the spread of a token's logits. ggml's GELU comes from a table in float16, which
costs 1e-3. A few tokens may deviate more: two experts may be so nearly equal that llama.cpp chooses
the other one.
"""
OTHER_GRAPH = (
    "llama.cpp does not do all that this model needs: `--to safetensors` writes it for transformers"
)
HINT = "is it of this adapter, at this scale? if so, export it again"


def split_text(
    text: str, tokenizer: Any, *, context: int, most: int = MOST_TOKENS
) -> list[list[int]]:
    """Split a text into chunks of tokens, each with the tokens that begin a text.

    Raises InputError for a text that is too short.
    """
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

    The same values, or those of the base alone with against_base, are requantized to measure the
    loss by quantization; the unquantized model shows deviations of llama.cpp itself. most_kl: a
    limit of the mean KL divergence to use instead. Raises the errors of `unmerged`.
    """
    started = time.monotonic()
    file = read_gguf(path)
    with tempfile.TemporaryDirectory(prefix="decant-") as folder:
        kept = LogitsOnDisk(Path(folder))
        report(Step("running transformers and peft, unmerged"))
        with unmerged(plan, report=report) as model:
            base = kept.keep("base", counted(model.logits(chunks), chunks, "base", report))
            tuned = base
            if plan.adapters:
                model.adapt()
                named = "base + adapter"
                tuned = kept.keep("tuned", counted(model.logits(chunks), chunks, named, report))
        report(Step("running the GGUF"))
        try:
            ours = kept.keep(
                "ours", counted(gguf_logits(path, chunks, toolchain), chunks, "GGUF", report)
            )
        except (EngineError, ModelError) as error:
            return Check("logits", (error.message,), "llama.cpp cannot run it", hint=OTHER_GRAPH)
        run = Run(file, plan, chunks[:COMPARED], toolchain, kept)
        found = compare(kept.read(tuned), kept.read(ours), chunks)
        plain = compare(kept.read(tuned), kept.read(base), chunks)
        first = compare(kept.read(tuned[:COMPARED]), kept.read(ours), run.chunks)
        remade = (
            run.against_base(base, tuned, first, report)
            if against_base
            else run.remade(tuned, False, report)
        )
    limited = found if most_kl is not None or remade.is_exact else first
    limit = remade.limit if most_kl is None else most_kl
    ignored = ignored_by_llamacpp(plan, toolchain) if remade.other_graph(found) else ()
    check = judge(found, plain, remade, limited, limit, ignored)
    seconds = {"seconds": time.monotonic() - started}
    is_judged = most_kl is not None or not remade.why
    return replace(check, numbers=check.numbers | seconds, judged=is_judged)


@dataclass(frozen=True, slots=True)
class RemadeDistances:
    """Distances of the remade models from the reference."""

    is_exact: bool
    """Whether the file itself is not quantized, so that nothing is remade."""
    alike: Distance | None = None
    """Distance of the model quantized like the file."""
    exact: Distance | None = None
    """Distance of the unquantized model."""
    exact_type: str = "F32"
    why: str = ""
    """The reason if the models could not be made."""
    of_base: bool = False
    merged: Distance | None = None
    """Distance of the merged model, if the base alone is nearer than the file."""

    def other_graph(self, found: Distance) -> str:
        """Describe llama.cpp's deviation for the unquantized model; empty within the limits.

        found: the file's distance, which applies if the file itself is not quantized.
        """
        exact = found if self.is_exact else self.exact
        if exact is None or exact.off <= EXACT_LOGITS[self.exact_type]:
            return ""
        return (
            f"llama.cpp computes this model differently from transformers and peft: in"
            f" {self.exact_type}, where nothing is quantized, logits are {exact.off:.1%} off"
            f" (KL {exact.kl:.2g})"
        )

    @property
    def limit(self) -> float:
        """The limit of the file's mean KL divergence."""
        if self.is_exact:
            return EXTRA
        made = [distance.kl for distance in (self.alike, self.merged) if distance]
        return TIMES * max(made) + EXTRA if made else math.inf


@dataclass(frozen=True, slots=True)
class Run:
    """The inputs of the runs that measure the loss by quantization."""

    file: GGUFFile
    plan: MergePlan
    chunks: Sequence[Sequence[int]]
    toolchain: Toolchain
    kept: LogitsOnDisk

    def remade(self, reference: list[Path], against_base: bool, report: Report) -> RemadeDistances:
        """Remake the model (or its base alone), and compare it with the reference's logits."""
        if all(info.type.name == "F32" for info in self.file.tensors):
            return RemadeDistances(is_exact=True)
        plan = plan_merge(self.plan.checkpoint, []) if against_base else self.plan
        try:
            folder = self.kept.folder / ("base" if against_base else "merged")
            folder.mkdir()
            made = remake(plan, self.file, folder, self.toolchain, report=report)
            alike = self.distance(reference, made.alike)
            exact = self.distance(reference, made.exact)
        except (SpaceError, UnsupportedError, EngineError, ModelError) as error:
            return RemadeDistances(is_exact=False, why=error.message)
        return RemadeDistances(False, alike, exact, made.exact_type, of_base=against_base)

    def against_base(
        self, base: list[Path], tuned: list[Path], found: Distance, report: Report
    ) -> RemadeDistances:
        """Remake the base alone; also the merged model if the file, `found`, is further off.

        A base whose values lie on a type's grid loses nothing in that type; the adapters' change
        does.
        """
        alone = self.remade(base, True, report)
        if alone.alike is None or found.kl <= alone.limit:
            return alone
        return replace(alone, merged=self.remade(tuned, False, report).alike)

    def distance(self, reference: list[Path], path: Path) -> Distance:
        logits = gguf_logits(path, self.chunks, self.toolchain)
        return compare(self.kept.read(reference[: len(self.chunks)]), logits, self.chunks)


@dataclass(frozen=True, slots=True)
class LogitsOnDisk:
    """Logits stored on disk: for a large vocabulary they do not fit in memory."""

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
    """The logits (tokens, vocabulary) of each chunk, with progress reports."""
    for number, chunk in enumerate(logits):
        yield chunk
        report(Progress(task, number + 1, len(chunks), "steps"))


def judge(
    found: Distance,
    plain: Distance,
    remade: RemadeDistances,
    limited: Distance,
    limit: float,
    ignored: Sequence[str] = (),
) -> Check:
    """Describe the numbers and compare them with the limit.

    found: the file's distance over all tokens; limited: over the tokens that the limit is for;
    ignored: settings that llama.cpp is known to ignore, which make no file wrong.
    """
    problems, notes, hint = [], [], HINT
    is_beyond = not limited.kl <= limit and not (ignored and remade.is_exact)
    if is_beyond or not found.kl < math.inf:  # true for NaN, too
        problems.append(
            f"its predictions are {limited.kl:.3g} nats from the trained model's (mean KL"
            f" divergence over {limited.tokens} tokens); at most {limit:.3g} is right"
            + origin_of(remade)
        )
    deviation = remade.other_graph(found)
    if deviation and ignored:
        notes.append(f"{deviation}: {'; '.join(ignored)}; {OTHER_GRAPH}")
    elif deviation:
        problems.append(deviation)
        hint = OTHER_GRAPH
    if remade.why:
        notes.append(f"what quantizing costs cannot be judged: {remade.why}")
    if not problems and remade.merged and remade.alike:
        notes.append(
            f"the base alone, quantized alike, is {remade.alike.kl:.2g} nats off and this file"
            f" {limited.kl:.2g}, like the same values requantized: the adapter's change is not"
            " on the base's grid"
        )
    if not problems and plain.kl and found.kl > plain.kl:
        notes.append(
            f"quantizing costs {found.kl:.2g} nats, more than the adapter's own effect of"
            f" {plain.kl:.2g}: a larger -q holds more of it"
        )
    numbers, detail = figures(found, plain, remade, limit)
    return Check("logits", tuple(problems), detail, tuple(notes), numbers, hint=hint)


def figures(
    found: Distance, plain: Distance, remade: RemadeDistances, limit: float
) -> tuple[dict[str, float], str]:
    """The numbers for programs, and the same as a sentence for people."""
    numbers = {
        "tokens": found.tokens, "kl": found.kl, "kl_max": found.kl_max, "kl_limit": limit,
        "logit": found.logit, "logits_off": found.off, "top1": found.top1,
        "perplexity_gguf": found.perplexity, "perplexity_tuned": found.reference_perplexity,
        "perplexity_base": plain.perplexity, "kl_of_adapter": plain.kl,
    }  # fmt: skip
    detail = (
        f"KL {found.kl:.2g} (limit {limit:.2g}; the adapter's own effect is {plain.kl:.2g}),"
        f" same first choice {found.top1:.1%}, perplexity {plain.perplexity:.4g} base,"
        f" {found.reference_perplexity:.4g} tuned, {found.perplexity:.4g} GGUF"
    )
    if remade.alike and remade.exact:
        numbers |= {
            "kl_of_base" if remade.of_base else "kl_anew": remade.alike.kl,
            "kl_unquantized": remade.exact.kl, "logits_off_unquantized": remade.exact.off,
        }  # fmt: skip
        what = "the base quantized alike" if remade.of_base else "requantized"
        detail += (
            f"; {what}: KL {remade.alike.kl:.2g}; in {remade.exact_type}: {remade.exact.kl:.2g}"
        )
    return {name: value for name, value in numbers.items() if math.isfinite(value)}, detail


def origin_of(remade: RemadeDistances) -> str:
    """The origin of a limit, as the end of a sentence."""
    if remade.alike is None:
        return ""
    made = remade.merged or remade.alike
    of_base = remade.of_base and remade.merged is None
    what = "the base alone, quantized alike, is" if of_base else "the same values requantized are"
    return f", as {what} {made.kl:.3g} off"
