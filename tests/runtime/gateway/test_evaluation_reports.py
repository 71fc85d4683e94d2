"""The routes of evaluations: what is listed and served, to which clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.evaluation_reports import LIFETIME_S, PAGE_MAX, Reports
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings
from tests.support.evaluations import BASE, SMALL, TUNE
from tests.support.stored_reports import HTML, stored

pytestmark = pytest.mark.lasting

KEY = {"Authorization": "Bearer secret"}
NAME = "20261127-081500-tune"
PAGE = f"/evaluations/{NAME}/report.html"


def client_of(reports: Reports, **settings: object) -> TestClient:
    given = Settings(**settings)
    gateway = Gateway(given, Catalog([]), EnginePool(given, None), reports=reports)
    return TestClient(build_app(gateway), base_url="http://localhost", raise_server_exceptions=True)


@pytest.fixture
def root(tmp_path):
    """The folder of evaluations, with one of them."""
    stored(tmp_path / "evaluations", NAME)
    return tmp_path / "evaluations"


@pytest.fixture
def client(root):
    return client_of(Reports(root))


@pytest.fixture
def guarded(root):
    return client_of(Reports(root), keys=("secret",))


def test_reports_are_listed_the_newest_first(root, client):
    for name, began in (
        ("1-newest", "2026-11-27T09:15:01+0100"), ("2-oldest", "2026-11-27T06:15:00Z"),
        ("3", "2026-11-27T08:15:00.500+01:00"), ("4-garbled", "yesterday"),
    ):  # fmt: skip
        stored(root, name, began=began, is_complete=name != "3")
    (root / "outcomes.sqlite").touch()
    (root / "empty").mkdir()

    answer = client.get("/evaluations")
    entries = answer.json()["data"]

    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json()["notes"] == []
    # in the same second as the first, and half a second later
    assert [entry["id"] for entry in entries] == ["1-newest", "3", NAME, "2-oldest", "4-garbled"]
    assert [entry["is_complete"] for entry in entries] == [True, False, True, True, True]
    assert entries[2] == {
        "id": NAME, "object": "evaluation", "began": "2026-11-27T08:15:00+01:00",
        "data": "tickets.jsonl", "items": 20, "models": [BASE, TUNE, SMALL],
        "headline": entries[2]["headline"], "is_complete": True,
        "report": PAGE.lstrip("/"),
    }  # fmt: skip
    assert entries[2]["headline"].startswith(f"{TUNE} is better than {BASE} in exact match")


def test_a_server_without_reports_lists_none(tmp_path):
    for reports in (Reports(), Reports(tmp_path / "missing")):
        client = client_of(reports)

        assert client.get("/evaluations").json() == {"object": "list", "data": [], "notes": []}
        assert client.get(PAGE).status_code == 404


def test_a_damaged_report_is_a_note_without_the_folders_path(root, client):
    for name, text in (("x", "{"), ("y", '{"version": 99}'), ("z", '{"version": 1, "id": 3}')):
        (root / name).mkdir()
        (root / name / "report.json").write_text(text)

    answer = client.get("/evaluations").json()

    assert [entry["id"] for entry in answer["data"]] == [NAME]
    assert len(answer["notes"]) == 3
    assert all("report.json" in note for note in answer["notes"])
    assert str(root) not in json.dumps(answer)


def test_a_report_is_served_as_a_page_of_no_origin(root, client):
    answer = client.get(PAGE)

    assert (answer.status_code, answer.text) == (200, HTML)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "sandbox allow-scripts", "frame-ancestors 'self'"} <= set(policy)
    assert not any("allow-same-origin" in part for part in policy)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert client.head(PAGE).status_code == 200
    assert client.post(PAGE, json={}).status_code == 405


@pytest.mark.parametrize(
    "name",
    ["..", ".", "%2e%2e", "..%2f..", "%2e%2e%2fsecret", "none", "%00", "linked", "outside", "file",
     "%ff", NAME + "%00", NAME + "/", NAME.upper(), "%5c..", "*", "piped", "folded", "empty"],
)  # fmt: skip
def test_nothing_but_a_folders_own_report_is_served(name, root, client, tmp_path):
    """Neither through a path, nor through a link in the folder or for the page."""
    stored(tmp_path, "secret", html="secret")
    (tmp_path / "report.html").write_text("secret")
    (root / "report.html").write_text("secret")
    (root / "outside").symlink_to(tmp_path / "secret")
    (root / "file").write_text("secret")
    for folder in ("linked", "piped", "folded", "empty"):
        (root / folder).mkdir()
    (root / "linked" / "report.html").symlink_to(tmp_path / "secret" / "report.html")
    os.mkfifo(root / "piped" / "report.html")
    (root / "folded" / "report.html").mkdir()

    answer = client.get(f"/evaluations/{name}/report.html")

    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
    assert "secret" not in answer.text.replace("secret/", "")
    assert [entry["id"] for entry in client.get("/evaluations").json()["data"]] == [NAME]


def test_a_name_of_any_characters_has_an_address_that_works(root, client):
    name = "2026 ü#?&'<b>\\;+"
    stored(root, name, html="found")
    stored(root, "bad\udcff")
    stored(root, "bad\n")

    found = {entry["id"]: entry["report"] for entry in client.get("/evaluations").json()["data"]}

    assert found.keys() == {NAME, name}
    assert client.get(f"/{found[name]}").text == "found"


def test_halves_of_surrogate_pairs_do_not_break_the_list(root, client):
    stored(root, "odd", data="\ud800.jsonl")

    answer = client.get("/evaluations")

    assert {entry["data"] for entry in answer.json()["data"]} == {"tickets.jsonl", "?.jsonl"}


def test_a_page_too_large_is_not_read_into_memory(root, client):
    with (root / NAME / "report.html").open("r+b") as file:
        file.truncate(PAGE_MAX + 1)

    assert client.get(PAGE).status_code == 404


def test_where_there_are_keys_only_they_list_reports(guarded):
    assert guarded.get("/evaluations").status_code == 401
    assert guarded.get("/evaluations", headers=KEY).status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = guarded.get(PAGE, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert guarded.get(PAGE, headers=KEY).text == HTML
    # whether there is such a report is not for all to know
    assert guarded.get("/evaluations/none/report.html").status_code == 401
    nested = "/evaluations/a/b/report.html"
    for other in (
        nested,
        "/evaluations/",
        f"/evaluations/{NAME}",
        f"/evaluations/{NAME}/items.jsonl",
    ):
        assert guarded.get(other).status_code == 401


def test_a_listed_address_opens_its_report_without_the_key_and_no_other(root, guarded):
    stored(root, "other", html="other")
    listed = guarded.get("/evaluations", headers=KEY).json()["data"]
    first, second = (f"/{entry['report']}" for entry in listed)

    assert {guarded.get(first).text, guarded.get(second).text} == {HTML, "other"}
    assert guarded.get(f"{urlsplit(first).path}?{urlsplit(second).query}").status_code == 401
    assert guarded.get(f"/evaluations?{urlsplit(first).query}").status_code == 401
    assert guarded.get(first, headers={"Origin": "http://evil.example"}).status_code == 403
    assert guarded.get(first, headers={"Host": "evil.example"}).status_code == 403
    assert guarded.get(first, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_a_ticket_is_good_for_its_time_and_its_server(root):
    now = [1000.0]
    reports = Reports(root, clock=lambda: now[0])
    guarded = client_of(reports, keys=("secret",))
    (entry,) = guarded.get("/evaluations", headers=KEY).json()["data"]
    address = f"/{entry['report']}"

    now[0] += LIFETIME_S - 1
    assert guarded.get(address).status_code == 200
    assert client_of(Reports(root), keys=("secret",)).get(address).status_code == 401
    now[0] += 1
    assert guarded.get(address).status_code == 401
    (ticket,) = parse_qs(urlsplit(address).query)["ticket"]
    ends, _, signature = ticket.partition("-")
    longer = f"{PAGE}?ticket={int(ends) + 9}-{signature}"
    assert guarded.get(longer).status_code == 401


@pytest.mark.parametrize(
    "ticket",
    ["", "-", "1", "x-y", "-1-2", "²-x", "9" * 5000 + "-x", "1-é", "1e9-x", "99999999999-"],
)
def test_no_other_text_is_a_ticket(ticket, root):
    assert not Reports(root).is_valid(ticket, NAME)


def test_a_server_starts_without_what_reads_reports():
    code = (
        "import runtime.gateway.asgi_app, runtime.cli.eval_command, sys;"
        "print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'jinja2', 'matplotlib',"
        " 'scipy', 'sklearn') or m.startswith('runtime.evaluation')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
