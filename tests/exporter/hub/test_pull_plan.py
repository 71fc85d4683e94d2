from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from exporter.core.errors import DownloadError, InputError
from exporter.hub.access_token import TokenRule
from exporter.hub.endpoints import parse_endpoint
from exporter.hub.pull_plan import FileFilter, choose, make_plan, retry_after
from exporter.hub.repo_refs import Ref
from tests.exporter.hub.conftest import QUICK, Events
from tests.support.hub_files import COMMIT, REPO, FakeFile, Faults
from tests.support.hub_stage import NAME, Stage

pytestmark = pytest.mark.lasting


def plan_from(stage: Stage, *, report=None, slept=None, ref: Ref | None = None, both: bool = True):
    hubs = (stage.a, stage.b) if both else (stage.a,)
    return make_plan(
        ref or Ref(REPO),
        [parse_endpoint(hub.url) for hub in hubs],
        TokenRule(),
        QUICK,
        sleep=(slept if slept is not None else []).append,
        report=report or Events(),
    )


def test_plan_pins_the_commit_and_knows_sizes_and_hashes(stage: Stage):
    plan = plan_from(stage)
    assert plan.commit == COMMIT
    assert [(file.path, file.size, file.etag) for file in plan.files] == [
        (name, file.size, file.etag) for name, file in stage.a.files.items()
    ]
    assert not plan.is_reference


def test_one_503_is_waited_for(stage: Stage):
    stage.a.faults.api_status = [503, 502]
    slept: list[float] = []
    assert plan_from(stage, slept=slept, both=False).commit == COMMIT
    assert slept == [0.01, 0.02]


def test_other_endpoint_is_asked_at_once(stage: Stage, events: Events):
    stage.a.faults.api_status = [503]
    slept: list[float] = []
    assert plan_from(stage, slept=slept, report=events).commit == COMMIT
    assert slept == []
    assert "answers 503" in events.text


def test_mirrors_that_agree_are_both_named(stage: Stage):
    assert plan_from(stage).hashes_from == (stage.a.name, stage.b.name)
    assert f"/revision/{COMMIT}?" in stage.b.requests[0].path


def test_mirrors_that_disagree_about_a_commit_stop_the_pull(stage: Stage):
    stage.b.files = stage.b.files | {NAME: FakeFile(b"evil")}
    with pytest.raises(DownloadError, match=f"disagree about `{NAME}` in commit c0ffee") as caught:
        plan_from(stage)
    assert stage.a.name in caught.value.message
    assert stage.b.name in caught.value.message


@pytest.mark.parametrize("fault", [{"api_status": [404]}, {"html_api": True}, {"gated": True}])
def test_mirror_without_an_opinion_says_nothing_against(stage: Stage, fault: dict[str, object]):
    stage.b.faults = Faults(**fault)
    assert plan_from(stage).hashes_from == (stage.a.name,)


def test_mirror_at_another_commit_says_nothing_against(stage: Stage):
    stage.b.commit, stage.b.files = "beef" * 10, {}
    assert plan_from(stage).hashes_from == (stage.a.name,)


def test_login_page_instead_of_the_api_is_named(stage: Stage):
    stage.a.faults.html_api = True
    with pytest.raises(DownloadError, match="answers with something that is not the hub's"):
        plan_from(stage, both=False)


def test_gated_repo_says_how_to_get_in(stage: Stage):
    stage.a.faults.gated = True
    with pytest.raises(DownloadError, match="says that it is gated") as caught:
        plan_from(stage, both=False)
    assert caught.value.hint is not None
    assert "hf auth login" in caught.value.hint


def test_unknown_repo_is_not_asked_for_twice(stage: Stage):
    with pytest.raises(DownloadError, match="does not have it"):
        plan_from(stage, ref=Ref("org/other"), both=False)
    assert len(stage.a.requests) == 1


def test_unreachable_endpoint_is_tried_and_named(stage: Stage):
    stage.a.__exit__()
    slept: list[float] = []
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+ cannot be reached"):
        plan_from(stage, slept=slept, both=False)
    assert len(slept) == 3


@pytest.mark.parametrize("commit", ["../../etc", "main", "", "C0FFEE" + "0" * 34])
def test_commit_that_is_none_is_not_believed(stage: Stage, commit: str):
    stage.a.commit = commit
    with pytest.raises(DownloadError):
        plan_from(stage, both=False)


def test_hash_that_is_none_is_not_believed(stage: Stage):
    stage.a.files = {"x": FakeFile(b"x", etag="../../../x")}
    with pytest.raises(DownloadError):
        plan_from(stage, both=False)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (FileFilter(), {NAME, "config.json"}),
        (FileFilter(files=("config.json",)), {"config.json"}),
        (FileFilter(include=("*.safetensors",)), {NAME}),
        (FileFilter(exclude=("*.safetensors",)), {"config.json"}),
        (FileFilter(include=("*.json", "*.safetensors"), exclude=("model*",)), {"config.json"}),
    ],
)
def test_choice_takes_files_and_globs(stage: Stage, choice: FileFilter, names: set[str]):
    assert {file.path for file in choose(plan_from(stage), choice).files} == names


def test_file_that_is_not_there_is_named_with_those_that_are(stage: Stage):
    with pytest.raises(InputError, match=r"has no file 'nope'") as caught:
        choose(plan_from(stage), FileFilter(files=("nope",)))
    assert caught.value.hint == f"it has {NAME}, config.json"


def test_choice_of_nothing_is_refused(stage: Stage):
    with pytest.raises(InputError, match="none of the 2 files"):
        choose(plan_from(stage), FileFilter(include=("*.gguf",)))


def test_folder_of_a_link_is_all_in_it(stage: Stage):
    stage.a.files = {name: FakeFile(b"x") for name in ("a/x", "a/b/y", "ab/z", "x")}
    plan = plan_from(stage, ref=Ref(REPO, folder="a"), both=False)
    assert {file.path for file in choose(plan, FileFilter()).files} == {"a/x", "a/b/y"}


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "C:\\x", "a\0b", "n" * 300, "d/../../x", ".decant/x"]
)
def test_name_that_leaves_its_folder_is_refused(stage: Stage, name: str):
    stage.a.files = {name: FakeFile(b"x")}
    with pytest.raises(DownloadError, match="names a file"):
        choose(plan_from(stage, both=False), FileFilter())


def test_file_that_is_also_a_folder_is_refused(stage: Stage):
    stage.a.files = {"a": FakeFile(b"x"), "a/b": FakeFile(b"x")}
    with pytest.raises(DownloadError, match="is a file and a folder"):
        choose(plan_from(stage, both=False), FileFilter())


def test_retry_after_is_a_number_or_a_date():
    assert retry_after("7") == 7
    assert retry_after(None, default=3) == 3
    assert retry_after("soon") == 0
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
