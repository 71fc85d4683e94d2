"""A push leaves the repo with exactly the named files, whatever fails on the way."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from exporter.core.errors import InputError, UploadError
from exporter.hub.endpoints import parse_endpoint
from tests.exporter.hub.conftest import Events
from tests.exporter.hub.upload.conftest import Pushing
from tests.support.hub_files import FakeFile
from tests.support.upload_files import TOKEN, FakeRepo, UploadFaults
from tests.support.upload_stage import REPO, write_gguf

pytestmark = pytest.mark.lasting  # a hub and sockets: seconds in all


def test_a_new_repo_has_the_files_and_the_card_in_one_commit(pushing: Pushing):
    pushed = pushing.push()

    assert pushing.is_right()
    repo = pushing.hub.repos[REPO]
    assert (len(repo.commits), pushed.commit) == (2, repo.head)
    assert (pushed.is_new, pushed.is_private) == (True, False)
    assert {file.state for file in pushed.files} == {"to send"}


def test_nothing_is_sent_twice(pushing: Pushing):
    first = pushing.push()
    before = len(pushing.hub.requests)

    again = pushing.push()

    assert (again.commit, again.sent) == (first.commit, 0)
    assert {file.state for file in again.files} == {"there"}
    assert {one.method for one in pushing.hub.requests[before:]} == {"GET"}


def test_bytes_of_a_push_that_stopped_before_its_commit_are_not_sent_again(pushing: Pushing):
    pushing.push(pushing.paths[0])
    pushing.hub.repos[REPO] = FakeRepo()
    before = len(pushing.hub.puts())

    planned = pushing.push(dry_run=True)
    pushed = pushing.push()

    assert [file.state for file in planned.files] == ["stored", "to send"]
    assert [file.state for file in pushed.files] == ["stored", "to send"]
    assert len(pushing.hub.puts()) == before + 1
    assert pushing.is_right()


def test_a_dry_run_changes_nothing(pushing: Pushing):
    planned = pushing.push(dry_run=True)

    assert (planned.commit, planned.is_new) == ("", True)
    assert planned.sent == sum(path.stat().st_size for path in pushing.paths) + len(planned.card)
    assert not pushing.hub.repos
    assert {one.method for one in pushing.hub.requests} == {"GET"}


def test_other_files_of_the_repo_stay(pushing: Pushing):
    notes = FakeFile(b"notes", is_lfs=False)
    pushing.hub.repos[REPO] = FakeRepo(files={"notes.txt": notes})

    pushing.push()

    assert pushing.hub.contents(REPO)["notes.txt"] == b"notes"


def test_only_the_named_files_leave_this_machine(pushing: Pushing):
    (pushing.folder / "secret.txt").write_text("nobody may read this")
    write_gguf(pushing.folder / "other-Q8_0.gguf")

    pushing.push(pushing.paths[0])

    assert pushing.is_right(pushing.paths[0])
    sent = b"".join(one.body for one in pushing.hub.requests)
    assert b"nobody may read" not in sent
    assert b"other-Q8_0" not in sent
    kinds = {
        urlsplit(one.path).path.removeprefix("/").partition("/")[0] for one in pushing.hub.requests
    }
    assert kinds == {"api", "org", "store", "verify"}


def test_a_file_in_parts_is_the_same_file(pushing: Pushing):
    pushing.hub.faults.chunk = 1000

    pushing.push()

    assert pushing.is_right()
    assert len(pushing.hub.puts()) == 2 * 5


def test_a_repo_that_must_be_private_is_created_so(pushing: Pushing):
    assert pushing.push(private=True).is_private is True
    assert pushing.hub.repos[REPO].private


def test_a_private_repo_stays_private(pushing: Pushing, events: Events):
    pushing.hub.repos[REPO] = FakeRepo(private=True)

    assert pushing.push(report=events).is_private is True
    assert pushing.hub.repos[REPO].private
    assert "is private and stays private" in events.text


def test_a_public_repo_does_not_become_private_by_a_push(pushing: Pushing):
    pushing.hub.repos[REPO] = FakeRepo()

    with pytest.raises(InputError, match="exists and is public") as stopped:
        pushing.push(private=True)

    assert "make it private on the hub" in stopped.value.hint
    assert {one.method for one in pushing.hub.requests} == {"GET"}


def test_another_commit_in_between_is_kept(pushing: Pushing, events: Events):
    pushing.hub.repos[REPO] = FakeRepo()
    pushing.hub.faults = UploadFaults(rivals=2)

    pushing.push(report=events)

    assert pushing.hub.contents(REPO).pop("rival.txt") == b"rival"
    assert pushing.hub.contents(REPO)["m-Q8_0.gguf"] == pushing.paths[1].read_bytes()
    assert "another commit came first" in events.text
    assert len(pushing.hub.puts()) == 2


def test_another_commit_of_the_same_file_is_followed_by_ours(pushing: Pushing):
    pushing.push(pushing.paths[0])
    pushing.hub.faults = UploadFaults(rivals=1, rival_file=("m-Q4_K_M.gguf", b"other"))

    pushing.push()

    assert pushing.is_right()


def test_commits_without_end_stop_the_push(pushing: Pushing):
    pushing.hub.faults = UploadFaults(rivals=99)

    with pytest.raises(UploadError, match="others commit to org/my-lora-GGUF at the same time"):
        pushing.push()


def test_a_commit_whose_answer_is_lost_is_not_made_twice(pushing: Pushing):
    pushing.hub.faults = UploadFaults(lost=1)

    pushing.push()

    assert pushing.is_right()
    assert len(pushing.hub.repos[REPO].commits) == 2


@pytest.mark.parametrize("name", ["m-Q8_0.gguf", "README.md"])
def test_a_commit_that_lacks_a_file_is_noticed(pushing: Pushing, name: str):
    pushing.hub.faults = UploadFaults(dropped=name)

    with pytest.raises(UploadError, match=f"does not hold {name} after the commit"):
        pushing.push()


@pytest.mark.parametrize("faults", [{"api": [503, 500]}, {"commit": [500]}, {"commit": [502, 503]}])
def test_failures_that_pass_are_tried_again(pushing: Pushing, faults: dict[str, list[int]]):
    pushing.hub.faults = UploadFaults(**faults)

    pushing.push()

    assert pushing.is_right()
    assert len(pushing.hub.repos[REPO].commits) == 2


@pytest.mark.parametrize("faults", [{"put": [500]}, {"cuts": [1000]}, {"cuts": [0]}])
def test_large_files_are_sent_again_after_a_failure(
    pushing: Pushing, events: Events, faults: dict[str, list[int]]
):
    pushing.hub.faults = UploadFaults(**faults)

    pushing.push(report=events)

    assert pushing.is_right()
    assert "did not take it: retrying in 1s" in events.text
    assert "s3cret" not in events.text


@pytest.mark.parametrize(
    ("faults", "words", "hint"),
    [
        ({"api": [401]}, "does not accept the token (401)", "hf auth login"),
        ({"commit": [403]}, "does not allow it with this token (403)", "write access to org"),
        ({"commit": [413]}, "as large as this (413)", "--split-max-size"),
        ({"commit": [422]}, "answers 422", "the hub's"),
        ({"largest": 1000}, "sending m-Q4_K_M.gguf: ", "--split-max-size"),
        ({"put": [403]}, "sending m-Q4_K_M.gguf: ", "write access"),
        ({"api": [503] * 9}, "answers 503", "run the same command again"),
    ],
)
def test_a_refusal_says_what_to_do_and_not_the_token(
    pushing: Pushing, events: Events, faults: dict[str, object], words: str, hint: str
):
    pushing.hub.faults = UploadFaults(**faults)

    with pytest.raises(UploadError) as stopped:
        pushing.push(report=events)

    assert words in stopped.value.message
    assert hint in stopped.value.hint
    said = f"{stopped.value.message} {stopped.value.hint} {events.text} {pushing.request()!r}"
    assert TOKEN not in said
    assert "s3cret" not in said


def test_a_repo_that_is_not_shown_to_us_is_not_created_anew(pushing: Pushing):
    pushing.hub.repos[REPO] = FakeRepo()
    pushing.hub.faults.gated = True

    with pytest.raises(UploadError, match="does not allow it with this token"):
        pushing.push()

    assert {one.method for one in pushing.hub.requests} == {"GET"}


def test_an_owner_without_a_place_for_us_is_an_error(pushing: Pushing):
    with pytest.raises(UploadError, match=r"creating nobody/x: .*have no rights") as stopped:
        pushing.push(repo="nobody/x")

    assert "write access to nobody" in stopped.value.hint


def test_a_hub_that_cannot_be_reached_is_an_error(pushing: Pushing):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        endpoint = parse_endpoint(f"http://127.0.0.1:{unused.getsockname()[1]}")

    with pytest.raises(UploadError, match="cannot be reached"):
        pushing.push(endpoint=endpoint)


def test_a_gitignore_of_the_repo_drops_no_file(pushing: Pushing):
    ignore = FakeFile(b"m-Q8_0.gguf", is_lfs=False)
    pushing.hub.repos[REPO] = FakeRepo(files={".gitignore": ignore})

    pushing.push()

    assert pushing.hub.contents(REPO)["m-Q8_0.gguf"] == pushing.paths[1].read_bytes()
