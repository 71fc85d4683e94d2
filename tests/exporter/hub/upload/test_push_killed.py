"""A push that is killed at any step, and run again, leaves the repo as if nothing had happened."""

from __future__ import annotations

import signal

import pytest

from tests.exporter.hub.upload.conftest import Pushing
from tests.support.upload_files import UploadFaults
from tests.support.upload_stage import REPO, start_push

pytestmark = pytest.mark.slow  # two processes a test

STEPS = ("read", "create", "preupload", "batch", "put", "verify", "commit")


def killed_at(pushing: Pushing, step: str, *, after: bool, how: signal.Signals) -> str:
    """Push in a process that ends while the hub works at a step; gives what it printed."""
    hub = pushing.hub
    hub.faults = UploadFaults(hold=step, hold_after=after)
    process = start_push(hub, *pushing.paths, REPO, "--private")
    try:
        assert hub.holds.wait(10), process.communicate()
        process.send_signal(how)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        hub.release.set()
    hub.faults = UploadFaults()
    return said


def pushed_again(pushing: Pushing) -> bool:
    """Whether the same command works now."""
    process = start_push(pushing.hub, *pushing.paths, REPO, "--private")
    said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return True


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_killed_and_run_again(pushing: Pushing, step: str, after: bool):
    killed_at(pushing, step, after=after, how=signal.SIGKILL)

    assert pushed_again(pushing)
    repo = pushing.hub.repos[REPO]
    contents = pushing.hub.contents(REPO)
    assert {path.name: contents.pop(path.name) for path in pushing.paths} == {
        path.name: path.read_bytes() for path in pushing.paths
    }
    assert list(contents) == ["README.md"]
    assert (repo.private, len(repo.commits)) == (True, 2)


@pytest.mark.parametrize("step", ["put", "commit"])
def test_interrupted_and_run_again(pushing: Pushing, step: str):
    said = killed_at(pushing, step, after=False, how=signal.SIGINT)

    assert "Traceback" not in said
    assert said.rstrip().endswith("interrupted")
    if step == "put":
        assert "stopped: 0 of 2 files have arrived, and the repo shows none of them yet" in said
    assert pushed_again(pushing)
    assert len(pushing.hub.repos[REPO].commits) == 2


def test_only_what_is_missing_is_sent_after_a_kill(pushing: Pushing):
    hub = pushing.hub
    killed_at(pushing, "commit", after=False, how=signal.SIGKILL)
    before = len(hub.puts())

    assert pushed_again(pushing)
    assert len(hub.puts()) == before == 2
