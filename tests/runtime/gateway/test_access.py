"""Who may ask: the matrix of what browsers send."""

from __future__ import annotations

import itertools

import pytest

from runtime.gateway.access import Guard, host_name
from runtime.gateway.api_errors import ApiError
from runtime.gateway.settings import Settings

HOSTS = {
    "localhost:8080": True, "127.0.0.1:8080": True, "[::1]:8080": True, "LOCALHOST": True,
    "evil.example": False, "localhost.evil.example": False, "": False, "192.0.2.7": False,
    "[::1].evil.example": False, "127.0.0.1.evil.example:8080": False, "my.name": True,
}  # fmt: skip
ORIGINS = {None: True, "own": True, "http://evil.example": False, "null": False,
           "http://localhost:3000": False, "https://friend.example": True}  # fmt: skip
TYPES = {"application/json": True, "application/json; charset=utf-8": True, "text/plain": False,
         "application/x-www-form-urlencoded": False, "multipart/form-data; boundary=x": False,
         "": False, "application/json; charset=utf-7": False}  # fmt: skip
SITES = {None: True, "same-origin": True, "none": True, "cross-site": False, "same-site": False}
GUARD = Guard(Settings(hosts=frozenset({"my.name"}), origins=frozenset({"https://friend.example"})))


def head(host=None, origin=None, kind=None, site=None, **more) -> dict[bytes, bytes]:
    values = {"host": host, "origin": origin, "content-type": kind, "sec-fetch-site": site, **more}
    return {n.replace("_", "-").encode(): v.encode() for n, v in values.items() if v is not None}


def lets_in(guard: Guard, method: str, path: str, given: dict[bytes, bytes]) -> int:
    try:
        guard.check(method, path, given)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_the_whole_matrix_of_host_origin_type_and_site(method):
    for host, origin, kind, site in itertools.product(HOSTS, ORIGINS, TYPES, SITES):
        sent = f"http://{host.lower()}" if origin == "own" else origin
        found = lets_in(GUARD, method, "/v1/models", head(host, sent, kind, site))
        by_page = ORIGINS[origin] if origin else SITES[site]
        if origin == "own":
            by_page = SITES[site]
        expected = 403 if not (HOSTS[host] and by_page) else 200
        if method == "POST" and expected == 200 and not TYPES[kind]:
            expected = 415
        assert found == expected, (host, origin, kind, site)


def test_a_link_may_open_the_page_and_nothing_else():
    link = {"site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}

    assert lets_in(GUARD, "GET", "/", head("localhost", **link)) == 200
    assert lets_in(GUARD, "GET", "/v1/models", head("localhost", **link)) == 403
    assert lets_in(GUARD, "GET", "/", head("localhost", site="cross-site")) == 403


@pytest.mark.parametrize(
    ("text", "name"),
    [("localhost:80", "localhost"), ("[::1]:80", "[::1]"), ("a.b.", "a.b"), ("a:b", "a:b"),
     ("x@localhost", "x@localhost"), ("localhost:80:80", "localhost:80:80")],
)  # fmt: skip
def test_hosts_are_read_whole_or_not_at_all(text, name):
    assert host_name(text.encode()) == name


def test_a_server_for_the_network_is_known_by_its_addresses_but_by_no_name():
    guard = Guard(Settings(host="0.0.0.0", keys=("k",)))
    key = {"authorization": "Bearer k"}

    assert lets_in(guard, "GET", "/v1/models", head("192.0.2.7:8080", **key)) == 200
    assert lets_in(guard, "GET", "/v1/models", head("[2001:db8::1]:8080", **key)) == 200
    assert lets_in(guard, "GET", "/v1/models", head("rebound.example", **key)) == 403


@pytest.mark.parametrize(
    ("given", "status"),
    [({}, 401), ({"authorization": "Bearer one"}, 200), ({"authorization": "bearer two"}, 200),
     ({"x_api_key": "two"}, 200), ({"authorization": "Bearer three"}, 401),
     ({"authorization": "Basic one"}, 401), ({"authorization": "Bearer "}, 401),
     ({"authorization": "one"}, 401), ({"authorization": "Bearer \u00e9"}, 401)],
)  # fmt: skip
def test_a_key_opens_and_nothing_else_does(given, status):
    guard = Guard(Settings(keys=("one", "two")))

    assert lets_in(guard, "GET", "/v1/models", head("localhost", **given)) == status
    assert lets_in(guard, "GET", "/metrics", head("localhost", **given)) == status
    for path in ("/livez", "/readyz", "/", "/page/style.css"):
        assert lets_in(guard, "GET", path, head("localhost", **given)) == 200


def test_keys_are_told_apart_for_their_shares():
    guard = Guard(Settings(keys=("one", "two")))

    assert guard.client_key(head("localhost", authorization="Bearer two")) == 1


def test_only_an_allowed_page_may_read_what_comes_back():
    friend = dict(GUARD.cors(head("localhost", "https://friend.example")))

    assert friend[b"access-control-allow-origin"] == b"https://friend.example"
    assert GUARD.cors(head("localhost", "http://evil.example")) == ()
    assert GUARD.cors(head("localhost")) == ()
