"""Who may ask: the matrix of what browsers send."""

from __future__ import annotations

import itertools

import pytest
from starlette.testclient import TestClient

from runtime.gateway.access import Guard, host_name
from runtime.gateway.api_errors import ApiError
from runtime.gateway.asgi_app import build_app
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.pool import EnginePool
from runtime.gateway.settings import Settings

FRIEND = "https://friend.example"
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
GUARD = Guard(Settings(hosts=frozenset({"my.name"}), origins=frozenset({FRIEND})))


def head(host=None, origin=None, kind=None, site=None, **more) -> dict[bytes, bytes]:
    values = {"host": host, "origin": origin, "content-type": kind, "sec-fetch-site": site, **more}
    return {n.replace("_", "-").encode(): v.encode() for n, v in values.items() if v is not None}


def lets_in(guard: Guard, method: str, path: str, given: dict[bytes, bytes]) -> int:
    try:
        guard.check_sender(method, path, given)
        guard.check_request(method, path, given)
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


@pytest.fixture
def client():
    """A server with a key and without models, which pages of one origin may ask."""
    settings = Settings(origins=frozenset({FRIEND}), keys=("secret",))
    gateway = Gateway(settings, Catalog([]), EnginePool(settings, None))
    return TestClient(build_app(gateway), base_url="http://localhost")


def test_only_an_allowed_page_may_read_what_comes_back(client):
    for headers, status in (({}, 401), ({"Authorization": "Bearer secret"}, 200)):
        friend = client.get("/v1/models", headers={"Origin": FRIEND, **headers})
        evil = client.get("/v1/models", headers={"Origin": "http://evil.example", **headers})
        bare = client.get("/v1/models", headers=headers)

        assert friend.headers["access-control-allow-origin"] == FRIEND
        assert "x-decant-model" in friend.headers["access-control-expose-headers"].lower()
        assert "Origin" in friend.headers["vary"]
        assert [friend.status_code, evil.status_code, bare.status_code] == [status, 403, status]
        for other in (evil, bare):
            assert "access-control-allow-origin" not in other.headers


def preflight(client, origin, method="POST", asked="content-type, x-api-key", host="localhost"):
    headers = {
        "Origin": origin,
        "Host": host,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": asked,
        "Access-Control-Request-Private-Network": "true",
    }
    return client.options("/v1/messages", headers=headers)


def test_an_allowed_page_is_told_before_it_asks_that_it_may(client):
    answer = preflight(client, FRIEND)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-api-key" in answer.headers["access-control-allow-headers"].lower()
    assert answer.headers["x-request-id"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert preflight(client, FRIEND, asked="x-other").status_code == 400
    assert preflight(client, FRIEND, method="PATCH").status_code == 400


@pytest.mark.parametrize(
    ("origin", "host"), [("http://evil.example", "localhost"), (FRIEND, "evil.example")]
)
def test_nobody_else_is(client, origin, host):
    answer = preflight(client, origin, host=host)

    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_where_no_page_is_allowed_none_is_told_anything():
    gateway = Gateway(Settings(), Catalog([]), EnginePool(Settings(), None))
    client = TestClient(build_app(gateway), base_url="http://localhost")

    assert preflight(client, FRIEND).status_code == 403
    assert "access-control-allow-origin" not in client.get("/livez").headers


def lets_change(settings: Settings, address: str = "127.0.0.1", **more: str) -> int:
    """The status for a client that removes an adapter, or 200."""
    guard = Guard(settings)
    given = head("localhost", kind="application/json", **more)
    try:
        guard.check_sender("POST", "/v1/unload_lora_adapter", given)
        guard.check_request("POST", "/v1/unload_lora_adapter", given, address)
    except ApiError as error:
        return error.status
    return 200


HERE = Settings(hosts=frozenset({"my.name"}), origins=frozenset({FRIEND}))


@pytest.mark.parametrize(
    ("status", "address", "sent"),
    [
        (200, "127.0.0.1", {}), (200, "::1", {}), (200, "127.0.0.9", {}),
        (403, "192.0.2.7", {}), (403, "", {}), (403, "10.0.0.1", {}),
        (403, "127.0.0.1", {"x_forwarded_for": "192.0.2.7"}),
        (403, "127.0.0.1", {"forwarded": "for=192.0.2.7"}),
        (403, "127.0.0.1", {"x_real_ip": "192.0.2.7"}),
        (403, "127.0.0.1", {"origin": FRIEND}),
        (200, "127.0.0.1", {"origin": "http://localhost"}),
    ],
)  # fmt: skip
def test_without_keys_only_programs_here_change_adapters(status, address, sent):
    assert lets_change(HERE, address, **sent) == status


def test_a_proxy_that_passes_its_name_on_changes_no_adapters():
    given = head("my.name", None, "application/json")

    with pytest.raises(ApiError) as caught:
        Guard(HERE).check_request("POST", "/v1/load_lora_adapter", given, "127.0.0.1")
    assert caught.value.status == 403
    assert "--admin-key-file" in caught.value.message


@pytest.mark.parametrize(
    ("keys", "admins", "sent", "status"),
    [
        (("user",), (), "user", 403), (("user",), (), "", 401), (("user",), ("boss",), "user", 403),
        (("user",), ("boss",), "boss", 200), (("user",), ("boss",), "wrong", 401),
        (("user",), ("boss",), "", 401), ((), ("boss",), "boss", 200), ((), ("boss",), "", 401),
        ((), ("boss", "chief"), "chief", 200), ((), ("boss",), "wrong", 401),
    ],
)  # fmt: skip
def test_with_keys_only_an_admin_key_changes_adapters(keys, admins, sent, status):
    more = {"authorization": f"Bearer {sent}"} if sent else {}

    assert lets_change(Settings(keys=keys, admin_keys=admins), **more) == status


@pytest.mark.parametrize(
    ("keys", "sent", "status"),
    [(("user",), "boss", 200), (("user",), "user", 200), (("user",), "", 401), ((), "", 200)],
)
def test_an_admin_key_opens_the_other_routes_too_and_closes_none(keys, sent, status):
    more = {"authorization": f"Bearer {sent}"} if sent else {}
    guard = Guard(Settings(keys=keys, admin_keys=("boss",)))

    assert lets_in(guard, "GET", "/v1/models", head("localhost", **more)) == status
