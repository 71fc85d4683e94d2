"""The memory that is held while tensors are merged and written."""

from __future__ import annotations

import random
from dataclasses import replace

from exporter.core.buffer_pool import Pool
from exporter.forecast.peak_memory import THREAD_NBYTES, HeldMemory, peak_nbytes
from exporter.forecast.work import Part

VALUES = 25_000_000
MERGED = Part(VALUES, 2 * VALUES, exact=True, by_peft=False, rearranged=False, whole=True)


def test_a_block_is_taken_and_freed_as_the_pool_itself_does():
    chance, pool, held = (
        random.Random(5),
        Pool(idle_nbytes=12 << 20),
        HeldMemory(idle_most=12 << 20),
    )
    taken = []
    for _ in range(400):
        if taken and chance.random() < 0.5:
            buffer, block = taken.pop(chance.randrange(len(taken)))
            del buffer
            held.give(block)
        else:
            nbytes = chance.randrange(1 << 20, 9 << 20)
            taken.append((pool.take(nbytes), held.take(nbytes)))
        assert held.idle == [len(block) for block in pool.idle]
    assert held.total == sum(block for _, block in taken) + sum(held.idle)


def test_two_merged_tensors_are_held_and_the_stored_one_is_used_again():
    assert peak_nbytes([MERGED, MERGED], threads=0) == 4 * VALUES + 2 * VALUES + 4 * VALUES


def test_a_single_tensor_needs_its_stored_and_its_exact_values():
    assert peak_nbytes([MERGED], threads=0) == 6 * VALUES


def test_of_a_tensor_that_is_merged_by_rows_the_threads_hold_blocks():
    part = replace(MERGED, whole=False)

    assert peak_nbytes([part, part], threads=3) == 3 * THREAD_NBYTES


def test_what_the_converter_rearranges_takes_a_copy():
    turned = Part(VALUES, 2 * VALUES, exact=True, by_peft=False, rearranged=True, whole=True)

    assert peak_nbytes([turned], threads=0) == 10 * VALUES


def test_peft_s_layers_take_copies_of_the_update():
    by_peft = Part(VALUES, 2 * VALUES, exact=False, by_peft=True, rearranged=False, whole=True)

    assert peak_nbytes([by_peft], threads=0) == 2 * VALUES + 12 * VALUES
