"""Libraries that are kept from output and from threads."""

from __future__ import annotations

import os

import pytest

from exporter.core.silence import one_numpy_thread

SETTING = "OPENBLAS_NUM_THREADS"


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("3", "3")])
def test_a_number_of_threads_that_the_user_chose_stays(monkeypatch, before, after):
    monkeypatch.setenv(SETTING, "9")  # undone afterwards
    monkeypatch.delenv(SETTING)
    if before is not None:
        monkeypatch.setenv(SETTING, before)

    one_numpy_thread()

    assert os.environ[SETTING] == after
