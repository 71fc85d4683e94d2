"""The options of `decant chat` about answers, files and conversations."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from exporter.core.errors import InputError
from runtime.chat.repl.attachments import is_image
from runtime.chat.repl.commands import value_text
from runtime.chat.repl.set_options import changed, parse_setting, sent
from runtime.chat.session import QuestionAdded
from runtime.chat.session_files import list_sessions, new_session
from runtime.cli import chat_command
from tests.runtime.conftest import ANSWER, QUESTION
from tests.support.png import make_png
from tests.support.terminal import chat

ENGINE = [pytest.mark.llamacpp, pytest.mark.trained]
GRAMMAR = 'root ::= "moo" | "oink"'
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cow", "pig"]}},
    "required": ["animal"],
    "additionalProperties": False,
}


def test_settings_are_sent_under_the_names_of_the_api(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "g.gbnf").write_text(GRAMMAR)
    settings = dict(
        parse_setting(text)
        for text in (
            "top_p=0.9", "thinking=off", f"json_schema={tmp_path / 's.json'}",
            f"grammar={tmp_path / 'g.gbnf'}", "markdown=on", "seed=",
        )
    )  # fmt: skip

    assert sent(settings) == {
        "top_p": 0.9,
        "chat_template_kwargs": {"enable_thinking": False},
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}
        },
        "grammar": GRAMMAR,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "content", "message"),
    [
        ("json_schema", "{broken", "is not JSON"),
        ("json_schema", "[1]", "but not an object"),
        ("json_schema", None, "cannot read"),
        ("grammar", b"\xff\xfe", "not text in UTF-8"),
    ],
)
def test_files_that_cannot_be_meant_are_explained(tmp_path, setting, content, message):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(InputError, match=message):
        parse_setting(f"{setting}={path}")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--temperature", "nan", "'nan' is not a number"),
        ("--top-p", "nan", "'nan' is not a number"),
        ("--repeat-penalty", "0", "0.0 is not in the range"),
        ("--stop", "", "an empty text is everywhere"),
    ],
)
def test_values_with_which_no_answer_would_come_are_refused(option, value, message):
    found = CliRunner().invoke(chat_command.chat, ["m.gguf", "-p", "a", option, value])

    assert found.exit_code == 2
    assert message in found.output


def test_a_long_setting_is_shown_by_its_first_line():
    assert value_text('root ::= x\nx ::= "a"') == "root ::= x …"
    assert value_text("short") == "short"


def test_images_are_known_by_their_first_bytes(tmp_path):
    make_png(tmp_path / "a")
    (tmp_path / "b").write_text("a text")

    assert is_image(tmp_path / "a")
    assert not is_image(tmp_path / "b")
    assert not is_image(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--raw", "--no-think"), "--think are for chats"),
        (("--json-schema", __file__, "--grammar-file", __file__), "give one"),
        (("--file", "nowhere.txt"), "nowhere.txt"),
        (("--top-p", "2"), "top-p"),
    ],
)
def test_options_that_exclude_each_other_are_usage_errors(decant, arguments, message):
    done = decant("chat", "some-model", "-p", "hello", *arguments)

    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("-ngl", "3", "--adapter", "a=b"), "--adapter, -ngl are for a local model"),
        (("--threads", "2"), "--threads is for a local model"),
        (("--spec", "ngram"), "--spec is for a local model"),
        (("--base", "b"), "--base is for a local model"),
    ],
)
def test_what_a_server_decides_is_refused_with_its_address(decant, arguments, named):
    done = decant("chat", "--url", "http://127.0.0.1:9", "-p", "hello", *arguments)

    assert (done.returncode, named in done.stderr) == (2, True), done.stderr


def test_the_form_given_last_replaces_the_other():
    assert changed({"grammar": "g", "seed": 1}, {"json_schema": "{}"}) == {
        "json_schema": "{}", "seed": 1
    }  # fmt: skip
    assert changed({"json_schema": "{}"}, {"grammar": "g"}) == {"grammar": "g"}
    assert changed({"json_schema": "{}"}, {"grammar": None}) == {"json_schema": "{}"}
    assert changed({"seed": 1}, {"seed": None, "top_k": 3}) == {"top_k": 3}


class TestWithModel:
    pytestmark = ENGINE

    def test_answers_keep_to_a_schema_a_grammar_and_a_stop(self, decant, pirate, tmp_path):
        (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
        (tmp_path / "g.gbnf").write_text(GRAMMAR)

        def answer(*options: object) -> str:
            done = decant("chat", pirate, "-p", QUESTION, "--temperature", "0", *options)
            assert done.returncode == 0, done.stderr
            return done.stdout.rstrip("\n")

        schema = json.loads(answer("--json-schema", tmp_path / "s.json"))
        assert schema["animal"] in SCHEMA["properties"]["animal"]["enum"]
        assert answer("--grammar-file", tmp_path / "g.gbnf") in ("moo", "oink")
        word = ANSWER.split()[-1]
        assert answer("--stop", word) == ANSWER.partition(word)[0].rstrip("\n")
        assert answer("--top-k", "1", "--min-p", "0.5", "--repeat-penalty", "1") == ANSWER

    def test_a_file_goes_with_the_question(self, decant, pirate, tmp_path):
        text, image = tmp_path / "notes.txt", make_png(tmp_path / "p.png")
        text.write_text("some words")

        def asked(*options: object) -> dict[str, int]:
            done = decant("chat", pirate, "-p", QUESTION, "-n", "1", "--json", *options)
            return json.loads(done.stdout)

        assert asked("--file", text)["prompt_tokens"] > asked()["prompt_tokens"] + 5
        refused = decant("chat", pirate, "-p", QUESTION, "--file", image)
        assert refused.returncode != 0
        assert "takes no images" in refused.stderr

    def test_exit_without_a_slash_leaves(self, pirate, home):
        with chat(pirate) as terminal:
            terminal.ready()
            terminal.send("exit\r")
            assert terminal.wait() == 0


def test_a_conversation_is_deleted_by_name_and_an_open_one_is_not(decant, tmp_path):
    folder = tmp_path / "decant" / "chats"
    sessions = [new_session(folder, "model") for _ in range(2)]
    for session in sessions:
        session.record(QuestionAdded("who?"))
    first, second = (session.conversation.id for session in sessions)
    env = {"XDG_DATA_HOME": str(tmp_path)}

    open_one = decant("chat", "--delete", first, **env)
    assert "is open in another window" in open_one.stderr
    for session in sessions:
        session.close()
    done = decant("chat", "--delete", first, **env)

    assert done.returncode == 0, done.stderr
    assert [one.id for one in list_sessions(folder)] == [second]
    again = decant("chat", "--delete", first, **env)
    assert (again.returncode, f"no session '{first}'" in again.stderr) == (3, True)
