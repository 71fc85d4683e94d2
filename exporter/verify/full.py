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
from exporter.verify.logits_engine import gguf_logits
from exporter.verify.remade import ignored_by_llamacpp, remake
from exporter.verify.report import Check
from exporter.verify.unmerged import unmerged

if TYPE_CHECKING:
    import numpy as np

    Logits = Iterable[np.ndarray[Any, Any]]

CHUNK = 256  # tokens read at once
MOST_TOKENS = 2048  # of a text, unless asked for more
FEWEST = 2

TIMES, EXTRA = 2.0, 1e-3
"""A file may be so many times as far off as the same values quantized anew, and so much more.

The mean KL divergence is in nats. With --against-base: as the base alone, quantized alike.
"""
COMPARED = 2  # chunks over which the models that are made anew are run
EXACT_LOGITS = {"F32": 0.01, "F16": 0.1}
"""How far off the logits of most tokens may be where nothing is quantized, by the weights' type.

Of the spread of a token's logits. ggml's GELU comes from a table in float16, worth 1e-3; a few
tokens may be further off, where two experts are so nearly tied that the other one is chosen.
"""
NEARLY_ALL = 0.9  # of the tokens
OTHER_GRAPH = (
    "llama.cpp does not do all that this model needs: `--to safetensors` writes it for transformers"
)
HINT = "is it of this adapter, at this scale? if so, export it again"


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
    off: float
    """What 9 of 10 tokens stay below: their logits' difference (root mean square), as a part of
    the spread of the reference's logits."""
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

    What quantizing costs is measured by the same values quantized anew, or by the base alone with
    against_base; what llama.cpp itself does otherwise, by the model unquantized. most_kl: the
    limit of the mean KL divergence, instead of that. Raises what `unmerged` raises.
    """
    started = time.monotonic()
    file = read_gguf(path)
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
        anew = (
            run.against_base(base, tuned, first, report)
            if against_base
            else run.anew(tuned, False, report)
        )
    limited = found if most_kl is not None or anew.is_exact else first
    limit = anew.limit if most_kl is None else most_kl
    ignored = ignored_by_llamacpp(plan, toolchain) if anew.other_graph(found) else ()
    check = judge(found, plain, anew, limited, limit, ignored)
    seconds = {"seconds": time.monotonic() - started}
    is_judged = most_kl is not None or not anew.why
    return replace(check, numbers=check.numbers | seconds, judged=is_judged)


@dataclass(frozen=True, slots=True)
class Anew:
    """How far models that were made anew are from the reference."""

    is_exact: bool
    """Whether the file itself is not quantized, so that nothing was made."""
    alike: Distance | None = None
    """Quantized as the file is."""
    exact: Distance | None = None
    """Not quantized."""
    exact_type: str = "F32"
    why: str = ""
    """Why there is none."""
    of_base: bool = False
    merged: Distance | None = None
    """With the adapters, where the base alone, quantized alike, is nearer than the file."""

    def other_graph(self, found: Distance) -> str:
        """How far off llama.cpp is where nothing is quantized, "" where that is near enough.

        found: the file's own distance, which counts where it is not quantized.
        """
        exact = found if self.is_exact else self.exact
        if exact is None or exact.off <= EXACT_LOGITS[self.exact_type]:
            return ""
        return (
            f"llama.cpp computes this model otherwise than transformers and peft do: in"
            f" {self.exact_type}, where nothing is quantized, logits are {exact.off:.1%} off"
            f" (KL {exact.kl:.2g})"
        )

    @property
    def limit(self) -> float:
        """The mean KL divergence that the file may have."""
        if self.is_exact:
            return EXTRA
        made = [distance.kl for distance in (self.alike, self.merged) if distance]
        return TIMES * max(made) + EXTRA if made else math.inf


@dataclass(frozen=True, slots=True)
class Run:
    """What is run to see what quantizing costs."""

    file: GGUFFile
    plan: MergePlan
    chunks: Sequence[Sequence[int]]
    toolchain: Toolchain
    kept: Kept

    def anew(self, reference: list[Path], against_base: bool, report: Report) -> Anew:
        """Make the model (or its base alone) anew, and hold it against the reference's logits."""
        if all(info.type.name == "F32" for info in self.file.tensors):
            return Anew(is_exact=True)
        plan = plan_merge(self.plan.checkpoint, []) if against_base else self.plan
        try:
            folder = self.kept.folder / ("base" if against_base else "merged")
            folder.mkdir()
            made = remake(plan, self.file, folder, self.toolchain, report=report)
            alike = self.distance(reference, made.alike)
            exact = self.distance(reference, made.exact)
        except (SpaceError, UnsupportedError, EngineError, ModelError) as error:
            return Anew(is_exact=False, why=error.message)
        return Anew(False, alike, exact, made.exact_type, of_base=against_base)

    def against_base(
        self, base: list[Path], tuned: list[Path], found: Distance, report: Report
    ) -> Anew:
        """Make the base alone anew; with the adapters too where the file, `found`, is further off.

        A base that lies on the grid of a type loses nothing in it; what adapters add does.
        """
        alone = self.anew(base, True, report)
        if alone.alike is None or found.kl <= alone.limit:
            return alone
        return replace(alone, merged=self.anew(tuned, False, report).alike)

    def distance(self, reference: list[Path], path: Path) -> Distance:
        logits = gguf_logits(path, self.chunks, self.toolchain)
        return compare(self.kept.read(reference[: len(self.chunks)]), logits, self.chunks)


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
    parts = []
    for one, two, chunk in zip(reference, other, chunks, strict=False):
        width = min(one.shape[1], two.shape[1])  # llama.cpp may fill a vocabulary up
        a, b = (values[:-1, :width].astype(np.float64) for values in (one, two))
        log_a, log_b = log_softmax(a), log_softmax(b)
        divergences.append((np.exp(log_a) * (log_a - log_b)).sum(axis=1))
        agreeing.append(a.argmax(axis=1) == b.argmax(axis=1))
        places = np.arange(len(a)), np.array(chunk[1:])
        losses.append((-log_a[places], -log_b[places]))
        largest = max(largest, float(np.abs(a - b).max()))
        size = max(size, float(np.abs(a).max()))
        parts.append(np.linalg.norm(centred(a - b), axis=1) / spread(a))
    kl = np.concatenate(divergences)
    own, others = (np.concatenate(part) for part in zip(*losses, strict=True))
    return Distance(
        tokens=len(kl),
        kl=float(kl.mean()),
        kl_max=float(kl.max()),
        logit=largest,
        logit_size=size,
        off=float(np.quantile(np.concatenate(parts), NEARLY_ALL)),
        top1=float(np.concatenate(agreeing).mean()),
        perplexity=math.exp(others.mean()),
        reference_perplexity=math.exp(own.mean()),
    )


def centred(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits (tokens, vocabulary) less their mean, on which no prediction depends."""
    centre: np.ndarray[Any, Any] = logits - logits.mean(axis=1, keepdims=True)
    return centre


def spread(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How far each token's logits (tokens, vocabulary) are from their mean, never 0."""
    import numpy as np

    lengths: np.ndarray[Any, Any] = np.linalg.norm(centred(logits), axis=1)
    return np.where(lengths > 0, lengths, 1.0)


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def judge(
    found: Distance,
    plain: Distance,
    anew: Anew,
    limited: Distance,
    limit: float,
    ignored: Sequence[str] = (),
) -> Check:
    """Put the numbers into words, and hold them against the limit.

    found: the file over all tokens; limited: over those that the limit is for; ignored: what
    llama.cpp is known to compute otherwise, which makes no file wrong.
    """
    problems, notes, hint = [], [], HINT
    is_beyond = not limited.kl <= limit and not (ignored and anew.is_exact)
    if is_beyond or not found.kl < math.inf:  # a NaN is no number to be content with
        problems.append(
            f"its predictions are {limited.kl:.3g} nats from the trained model's (mean KL"
            f" divergence over {limited.tokens} tokens); at most {limit:.3g} is right"
            + said_of(anew)
        )
    said = anew.other_graph(found)
    if said and ignored:
        notes.append(f"{said}: {'; '.join(ignored)}; {OTHER_GRAPH}")
    elif said:
        problems.append(said)
        hint = OTHER_GRAPH
    if anew.why:
        notes.append(f"what quantizing costs cannot be judged: {anew.why}")
    if not problems and anew.merged and anew.alike:
        notes.append(
            f"the base alone, quantized alike, is {anew.alike.kl:.2g} nats off and this file"
            f" {limited.kl:.2g}, as the same values quantized anew are: what the adapter adds does"
            " not lie on the grid on which the base lies"
        )
    if not problems and plain.kl and found.kl > plain.kl:
        notes.append(
            f"quantizing costs {found.kl:.2g} nats, more than the adapter's own effect of"
            f" {plain.kl:.2g}: a larger -q holds more of it"
        )
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
    if anew.alike and anew.exact:
        numbers |= {
            "kl_of_base" if anew.of_base else "kl_anew": anew.alike.kl,
            "kl_unquantized": anew.exact.kl, "logits_off_unquantized": anew.exact.off,
        }  # fmt: skip
        what = "the base quantized alike" if anew.of_base else "quantized anew"
        detail += f"; {what}: KL {anew.alike.kl:.2g}; in {anew.exact_type}: {anew.exact.kl:.2g}"
    numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return Check("logits", tuple(problems), detail, tuple(notes), numbers, hint=hint)


def said_of(anew: Anew) -> str:
    """What a limit comes from, to be put behind it."""
    if anew.alike is None:
        return ""
    made = anew.merged or anew.alike
    of_base = anew.of_base and anew.merged is None
    what = (
        "the base alone, quantized alike, is" if of_base else "the same values quantized anew are"
    )
    return f", as {what} {made.kl:.3g} off"
