from __future__ import annotations

import gc

import pytest

from exporter.core.buffer_pool import Pool

MB = 1 << 20


@pytest.mark.lasting
def test_a_block_is_used_again_when_nothing_refers_to_it():
    pool = Pool()
    first = pool.take(4 * MB)
    view = memoryview(first).cast("B")
    first[0] = 7

    del first
    second = pool.take(4 * MB)  # the view still refers to the first
    second[0] = 8
    assert view[0] == 7

    del view
    gc.collect()
    assert pool.take(3 * MB)[0] == 7


@pytest.mark.lasting
def test_few_bytes_lie_idle():
    pool = Pool(idle_nbytes=10 * MB)
    taken = [pool.take(4 * MB) for _ in range(5)]

    taken.clear()
    gc.collect()

    assert sum(map(len, pool.idle)) == 8 * MB


@pytest.mark.trained
def test_a_tensor_holds_its_block():
    import torch

    pool = Pool()
    rows = torch.frombuffer(pool.take(4 * MB), dtype=torch.float32).reshape(1024, -1)[5:].numpy()

    assert pool.idle == []
    del rows
    gc.collect()
    assert len(pool.idle) == 1
