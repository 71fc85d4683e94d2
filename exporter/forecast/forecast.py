"""Predicts what an export takes: time, memory and disk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.convert.gguf_layout import Slot
from exporter.convert.lazy_graph import sources
from exporter.core.machine import available_nbytes, memory_in_use, process_age_s
from exporter.forecast.page_cache import read_s, uncached
from exporter.forecast.peak_memory import FLOAT32, peak_nbytes
from exporter.forecast.rates import Rates
from exporter.forecast.work import Work, work_of
from exporter.formats.gguf_file import GGUFPlan, Group
from exporter.merge.operations import MergePlan
from exporter.verify.expected import ROWS
from exporter.verify.kept_checks import was_verified
from exporter.verify.loading import ROOM
from exporter.verify.weights import UNCHANGED

LIBRARIES_NBYTES = 45 << 20
"""Memory that libraries keep after their first use, besides the tensors."""
PEFT_NBYTES = 120 << 20  # of PEFT itself
VERIFYING_NBYTES = 40 << 20  # beside what the export keeps: the file's keys and some rows
TOKENIZER_NBYTES = 16 << 20  # of the library that loads a tokenizer, to verify it
STRING_NBYTES = 560  # of a token or merge that it holds
UNFIT_NBYTES = 24 << 20  # the most of them
ENGINE_NBYTES = 128 << 20  # of the process that loads a file, beside the file
FIXED, PER_STRING = 75.0, 3.3e-4
NEW, PER_NEW_STRING = 150.0, 9e-4
PER_TENSOR, PER_VALUE, PER_LOADED = 0.07, 2.7e-5, 1.2e-7
"""The verification's time in strokes (`Rates.stroke_s`): for a file, for a string of the
vocabulary, for a tokenizer that was not checked before and a string of it, for a checked tensor and
a value of it. The last is for a byte that llama.cpp loads meanwhile. Fitted to the exports of
benchmarks/forecast.py.
"""
UNHIDDEN = 0.75  # share of the time for syncing that is not spent on computing, too
PEFT_STROKES = 250.0  # to import PEFT


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected time, memory and disk of an export."""

    seconds: float
    """From the start of the command to its end."""
    memory_nbytes: int
    """Peak of decant's process."""
    loading_nbytes: int
    """Memory of the process that loads a file for its verification; 0 if none does."""
    disk_nbytes: int
    """Size of all files."""
    is_lower_bound: bool
    """Whether a part of the work has no known rate."""
    planning_s: float
    merging_s: float
    """Of the thread that hands the blocks out, without waiting for the disk."""
    computing_s: float
    """Of all threads together, without waiting for the disk."""
    writing_s: float
    """From the first tensor to the end of writing; contains both."""
    verifying_s: float
    base_nbytes: int
    """Bytes that are read of the base."""
    cold_nbytes: int
    """Bytes of the base that are not in memory."""


def forecast(
    groups: Sequence[Group],
    merge: MergePlan,
    rates: Rates,
    *,
    verify: bool,
) -> Forecast:
    """The forecast of a planned export, for a machine that stays as busy as it is.

    It is called when planning is done: the export plans in the same way, except that it finds the
    token keys kept.
    """
    planning_s = max(0.0, process_age_s() - groups[0].tokens.seconds)
    used, used_most = memory_in_use()
    work = work_of(groups, merge)
    by_peft = any(part.by_peft for part in work.parts)
    cold, disk_s = waiting_s(work)
    all_s, main_s = rates.pass_s(work.values)
    if by_peft:
        all_s, main_s = (one + PEFT_STROKES * rates.stroke_s() for one in (all_s, main_s))
    synced_s = work.written_nbytes * rates.write_s(groups[0].plans[0].path.parent)
    writing_s = max(all_s, main_s + disk_s) + UNHIDDEN * synced_s
    verifying_s, loading = 0.0, 0
    memory = used + LIBRARIES_NBYTES + by_peft * PEFT_NBYTES + held_nbytes(work, rates.threads)
    if verify:
        free = available_nbytes()
        is_new = not was_verified(rates.toolchain, groups[0].tokens.content)
        strokes, loading = verification(groups[0], merge, free, is_new=is_new)
        verifying_s = strokes * rates.stroke_s()
        memory += VERIFYING_NBYTES
        if is_new and not groups[0].tokens.seconds:  # else it is in memory by now
            memory += TOKENIZER_NBYTES + groups[0].tokens.strings * STRING_NBYTES
    return Forecast(
        seconds=planning_s + writing_s + verifying_s,
        memory_nbytes=max(memory, used_most),
        loading_nbytes=loading,
        disk_nbytes=work.written_nbytes,
        is_lower_bound=not work.is_measurable,
        planning_s=planning_s,
        merging_s=main_s,
        computing_s=all_s,
        writing_s=writing_s,
        verifying_s=verifying_s,
        base_nbytes=work.read_nbytes,
        cold_nbytes=cold,
    )


def held_nbytes(work: Work, threads: int) -> int:
    """Memory of the tensors at the peak, with idle blocks that no later tensor fitted."""
    largest = max((part.values for part in work.parts if part.exact and part.whole), default=0)
    return peak_nbytes(work.parts, threads) + min(largest * FLOAT32, UNFIT_NBYTES)


def waiting_s(work: Work) -> tuple[int, float]:
    """The bytes of the base that are not in memory, and the seconds until the disk gives them."""
    share, cold = uncached(work.paths)
    nbytes = int(share * work.read_nbytes)
    return nbytes, nbytes * read_s(cold) if nbytes else 0.0


def verification(group: Group, merge: MergePlan, free: int, *, is_new: bool) -> tuple[float, int]:
    """Strokes of verifying the models' files, and the memory in which the largest is loaded.

    free: bytes of memory; a larger file is not loaded. is_new: whether the tokenizer has not been
    verified before.
    """
    checked = checked_slots(group.slots, merge)
    values = sum(min(ROWS, math.prod(slot.shape[:-1])) * slot.shape[-1] for slot in checked)
    per_string = PER_STRING + PER_NEW_STRING * is_new
    own = (
        FIXED
        + NEW * is_new
        + group.tokens.strings * per_string
        + len(checked) * PER_TENSOR
        + values * PER_VALUE
    )
    sizes = model_sizes(group.plans)
    loaded = [size for size in sizes if size + ROOM <= free]
    strokes = sum(max(own, FIXED + size * PER_LOADED * (size in loaded)) for size in sizes)
    return strokes, max(loaded) + ENGINE_NBYTES if loaded else 0


def checked_slots(slots: Sequence[Slot], merge: MergePlan) -> list[Slot]:
    """The tensors that the verification looks at."""
    changed = [
        slot for slot in slots if any(name in merge.changes for name in sources(slot.values))
    ]
    others = len(slots) - len(changed)
    names = {slot.name for slot in changed}
    some = [slot for slot in slots if slot.name not in names][: min(others, UNCHANGED)]
    return [slot for slot in changed + some if slot.shape]


def model_sizes(plans: Sequence[GGUFPlan]) -> list[int]:
    """Bytes of each model, with its shards together."""
    sizes: Counter[str] = Counter()
    for plan in plans:
        sizes[plan.quant] += plan.layout.size
    return list(sizes.values())
