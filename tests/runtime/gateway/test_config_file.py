"""`decant serve`'s options: from the command line, a file, and what contradicts itself."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from exporter.core.errors import DecantError, InputError
from runtime.cli.serve_command import KEY_VARIABLE, Options, serve, settings_of, with_changes
from runtime.gateway.settings import Settings, seconds


def parsed(*arguments: object) -> Options:
    """The options as the command would have them."""
    context = serve.make_context("serve", [str(argument) for argument in arguments])
    return Options(**context.params)


def write(folder: Path, text: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(text)
    return path


def test_a_file_sets_what_the_command_line_does_not(tmp_path):
    path = write(tmp_path, 'port = 9000\nparallel = 2\nallow-host = ["a", "b"]\nmodels = ["m"]')

    options = parsed("--config", path, "--port", 9001)

    assert (options.port, options.parallel, options.hosts) == (9001, 2, ("a", "b"))
    assert options.models == ("m",)


def test_a_file_gives_models_adapters_of_their_own(tmp_path):
    path = write(tmp_path, '[[model]]\npath = "a.gguf"\nadapters = {x = "x.gguf:0.5"}\n'
                           '[[model]]\npath = "b.gguf"\nbase = "./b"')  # fmt: skip

    first, second = parsed("--config", path).tables

    assert (first.path, first.adapters, first.base) == ("a.gguf", ("x=x.gguf:0.5",), None)
    assert (second.path, second.adapters, second.base) == ("b.gguf", (), "./b")


@pytest.mark.parametrize(
    ("text", "told"),
    [("prot = 1", "did you mean port"), ("port = [1]", "single value"),
     ('allow-host = "a"', "a list"), ("x = ", "not TOML"), ("[[model]]\nname = 1", "no 'name'"),
     ("[[model]]", "needs a path"), ("model = 3", "is not a table"),
     ('[[model]]\npath = "a"\nadapters = ["x"]', "NAME = PATH")],
)  # fmt: skip
def test_mistakes_in_a_file_are_named(text, told, tmp_path):
    with pytest.raises(InputError) as caught:
        parsed("--config", write(tmp_path, text))
    assert told in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    "text",
    ['port = "x"', "port = true", "port = 80.5", "parallel = 2.7", "parallel = true",
     "api-key-file = [1]", "api-key-file = [[1]]", "host = 1", "host = true", "ttl = 10",
     'quiet = "yes"', "quiet = 1", "allow-host = [1]", "host = 2020-01-01", "limits = 3",
     "[limits]\ninputs = 2.5", "[limits]\ninputs = true", 'host = "a\\u0000b"',
     'models = ["a\\nb"]',
     "models = ['" + "x" * 100_000 + "']", "[[model]]\npath = 1", '[[model]]\npath = "a"\nbase = 1',
     '[[model]]\npath = "a"\nadapters = {x = 1}', "a = " + "[" * 3000 + "]" * 3000,
     "[limits]\nnone = 3", 'limit = ["none=3"]'],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused_with_a_word(text, tmp_path):
    with pytest.raises(InputError) as caught:
        settings_of(parsed("--config", write(tmp_path, text)))
    assert len(caught.value.message) < 400
    assert caught.value.hint


def test_limits_come_from_the_command_line_and_from_a_file(tmp_path):
    path = write(tmp_path, "[limits]\ninputs = 9\nstops = 1")

    limits = settings_of(parsed("--config", path)).limits
    assert (limits.inputs, limits.stops) == (9, 1)
    assert settings_of(parsed("--limit", "tools=5", "--limit", "n=1")).limits.tools == 5
    assert settings_of(parsed("--release", "3s")).release_s == 3


@pytest.mark.parametrize(
    ("option", "text"),
    [("--allow-host", "*"), ("--allow-host", "*.example"), ("--allow-host", "http://a"),
     ("--allow-host", ""), ("--allow-host", "a b"), ("--allow-media-host", "*"),
     ("--allow-origin", "*"), ("--allow-origin", "https://*.example"), ("--allow-origin", "null"),
     ("--allow-origin", "chat.example"), ("--allow-origin", "https://a/b"),
     ("--allow-origin", "https://" + "a" * 100_000)],
)  # fmt: skip
def test_names_that_let_in_nobody_or_everybody_are_refused(option, text):
    with pytest.raises(InputError) as caught:
        settings_of(parsed(option, text))
    assert option in caught.value.message
    assert ("wildcards" in caught.value.message) is ("*" in text)


def test_other_names_are_taken():
    hosts = ("--allow-host", "LLM.example", "--allow-host", "[::1]", "--allow-host", "10.1.2.3:80")
    others = ("--allow-origin", "https://Chat.example:8443/", "--allow-media-host", "a-b.c")
    settings = settings_of(parsed(*hosts, *others))

    assert settings.hosts == {"llm.example", "[::1]", "10.1.2.3"}
    assert settings.origins == {"https://chat.example:8443"}
    assert settings.media_hosts == {"a-b.c"}


def test_a_certificate_that_is_none_is_told_before_anything_is_served(tmp_path):
    wrong = tmp_path / "cert.pem"
    for content in (
        b"",
        b"no PEM",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ):
        wrong.write_bytes(content)
        with pytest.raises(InputError, match="cannot be used for https"):
            settings_of(parsed("--tls-cert", wrong))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        parsed("--config", tmp_path / "none.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "my.name"])
def test_the_network_needs_a_key(host, tmp_path):
    with pytest.raises(click.UsageError, match="--api-key-file"):
        settings_of(parsed("--host", host))

    assert settings_of(parsed("--host", host, "--insecure-no-key")).keys == ()
    key = tmp_path / "key"
    key.write_text("secret\n")
    key.chmod(0o600)
    assert settings_of(parsed("--host", host, "--api-key-file", key)).keys == ("secret",)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machine_does_not(host):
    assert settings_of(parsed("--host", host)).host == host


def test_a_key_in_the_environment_is_taken_out_of_it(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")

    assert settings_of(parsed()).keys == ("secret",)
    assert KEY_VARIABLE not in os.environ


@pytest.mark.parametrize("key", ["two words", "schl\u00fcssel", "a\nb"])
def test_a_key_that_cannot_be_sent_is_refused(key, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(InputError, match="holds no key"):
        settings_of(parsed())


def test_a_key_that_others_may_read_is_refused(tmp_path):
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o644)
    with pytest.raises(DecantError, match="others may read"):
        settings_of(parsed("--api-key-file", key))


def test_tls_needs_files_that_are_there(tmp_path):
    with pytest.raises(click.UsageError):
        settings_of(parsed("--tls-key", tmp_path / "k"))
    with pytest.raises(InputError):
        settings_of(parsed("--tls-cert", tmp_path / "c"))


@pytest.mark.parametrize(
    ("text", "found"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("0", 0), ("0.5s", 0.5)],
)
def test_times_are_read(text, found):
    assert seconds(text) == found


@pytest.mark.parametrize("text", ["", "x", "-1", "1d", "nan", "inf", "m"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InputError):
        seconds(text)


def key_file(folder: Path, key: str) -> Path:
    path = folder / f"{key}.key"
    path.touch(0o600)
    path.write_text(key)
    return path


def changed(*arguments: object) -> Settings:
    """The settings with what may change while the server runs."""
    options = parsed(*arguments)
    return with_changes(settings_of(options), options)


def test_requests_may_add_adapters_from_the_named_folders_and_the_watched_one(tmp_path):
    for name in ("watched", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("other")
    config = write(tmp_path, f'allow-adapter-path = ["{tmp_path / "link"}"]\nallow-pull = true')

    settings = changed("--config", config, "--adapter-dir", tmp_path / "watched", "--base", "b")

    assert settings.adapter_folders == (tmp_path / "watched", tmp_path / "other")
    assert settings.adapter_dir == tmp_path / "watched"
    assert (settings.allow_pull, settings.adapter_base) == (True, "b")
    assert changed().adapter_folders == ()
    assert not changed().allow_pull


@pytest.mark.parametrize("option", ["--adapter-dir", "--allow-adapter-path"])
def test_a_folder_of_adapters_must_be_there(option, tmp_path):
    with pytest.raises(InputError, match="there is no folder") as caught:
        changed(option, tmp_path / "none")
    assert "mkdir" in caught.value.hint


def test_an_admin_key_is_no_api_key(tmp_path):
    one, two = key_file(tmp_path, "one"), key_file(tmp_path, "two")

    settings = changed("--api-key-file", one, "--admin-key-file", two)
    assert (settings.keys, settings.admin_keys) == (("one",), ("two",))
    with pytest.raises(InputError, match="is an API key, too"):
        changed("--api-key-file", one, "--admin-key-file", one)
    with pytest.raises(click.UsageError, match="is reached from the network"):
        changed("--host", "0.0.0.0", "--admin-key-file", two)
