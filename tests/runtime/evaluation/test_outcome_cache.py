"""Outcomes on disk: what was put is there after a kill, for several processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from exporter.core.errors import OutputError
from runtime.evaluation.outcome_cache import OutcomeCache, key_of

pytestmark = pytest.mark.lasting

WRITER = """
import os, sys
from pathlib import Path
from runtime.evaluation.outcome_cache import OutcomeCache, key_of
cache = OutcomeCache(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 50):
    cache.put(key_of(number), {"answer": str(number)})
    print(number, flush=True)
sys.stdin.read()
"""


def test_a_value_is_found_under_its_key_only(tmp_path):
    with OutcomeCache(tmp_path / "new" / "cache.sqlite") as cache:
        cache.put(key_of("a", {"x": 1, "y": 2}), {"answer": "é\ud800"})

        assert cache.get(key_of("a", {"y": 2, "x": 1})) == {"answer": "é\ud800"}
        assert cache.get(key_of("a", {"x": 1, "y": 3})) is None


OPENERS = """
import sys
from pathlib import Path
from multiprocessing import Barrier, Process
from runtime.evaluation.outcome_cache import OutcomeCache, key_of

def opened(start):
    for number in range(200):
        start.wait(20)
        with OutcomeCache(Path(sys.argv[1], str(number), "cache.sqlite")) as cache:
            cache.put(key_of(number), {})

start = Barrier(2)
openers = [Process(target=opened, args=(start,)) for _ in range(2)]
for opener in openers:
    opener.start()
for opener in openers:
    opener.join()
assert not any(opener.exitcode for opener in openers)
"""


def test_processes_that_open_a_new_cache_at_once_share_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", OPENERS, str(tmp_path)], capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr.decode()


def test_all_that_was_put_is_there_after_a_kill_of_two_writers(tmp_path):
    path = tmp_path / "cache.sqlite"
    argv = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen(
            [*argv, str(start)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for start in (0, 50)
    ]
    for writer in writers:
        with writer:
            assert writer.stdout is not None
            for _ in range(50):
                assert writer.stdout.readline(), "it wrote all"
            os.kill(writer.pid, signal.SIGKILL)

    with OutcomeCache(path) as cache:
        assert [cache.get(key_of(n)) for n in range(100)] == [
            {"answer": str(n)} for n in range(100)
        ]


def test_threads_share_one_cache(tmp_path):
    with OutcomeCache(tmp_path / "cache.sqlite") as cache:
        threads = [
            threading.Thread(target=lambda n=n: cache.put(key_of(n), {"n": n})) for n in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert all(cache.get(key_of(n)) == {"n": n} for n in range(20))


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"this is no database, but it is long enough to be taken for one" * 20)

    with pytest.raises(OutputError, match=r"cache\.sqlite") as told:
        OutcomeCache(path)

    assert "delete it" in str(told.value.hint)


def test_a_files_hash_is_computed_anew_when_the_file_has_changed(tmp_path):
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one")
    with OutcomeCache(tmp_path / "cache.sqlite") as cache:
        first = cache.sha256_of(model)
        assert cache.sha256_of(model) == first
        os.utime(model, ns=(1, 1))
        model.write_bytes(b"two")

        assert cache.sha256_of(model) != first
