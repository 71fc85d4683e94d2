"""decant's values go into a tool's file and out again, and all others stay."""

from __future__ import annotations

import json
import sys

import pytest

from runtime.launch.settings_formats import JsonFile, NamedEntries, OwnToml, YamlLines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

USER = '{"theme": "dark", "env": {"A": "mine", "B": "kept"}}'
OURS = {"env": {"A": "decant", "C": "decant"}, "deep": {"er": {"x": 1}}}


def test_values_are_merged_into_an_object_at_any_depth():
    found = json.loads(JsonFile().merged(USER, OURS))

    assert found == {
        "theme": "dark",
        "env": {"A": "decant", "B": "kept", "C": "decant"},
        "deep": {"er": {"x": 1}},
    }


@pytest.mark.parametrize("before", [USER, "{}", '{"env": {}}', '{"deep": {"er": {"y": 2}}}'])
def test_an_object_without_our_values_is_the_users(before):
    merged = JsonFile().merged(before, OURS)

    assert json.loads(JsonFile().undone(merged, OURS, before)) == json.loads(before)


def test_a_file_that_only_we_wrote_becomes_empty():
    assert JsonFile().undone(JsonFile().merged("", OURS), OURS, "") == ""


def test_what_was_changed_meanwhile_stays():
    now = json.loads(JsonFile().merged(USER, OURS))
    now["theme"], now["new"], now["env"]["C"] = "light", [1], "changed"

    found = json.loads(JsonFile().undone(json.dumps(now), OURS, USER))

    assert found == {
        "theme": "light",
        "new": [1],
        "env": {"A": "mine", "B": "kept", "C": "changed"},
    }


@pytest.mark.parametrize("text", ["[]", "{", "// a comment\n{}", "3"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError):
        JsonFile().merged(text, OURS)


def test_an_entry_takes_the_place_of_one_with_its_name_and_gives_it_back():
    before = '[{"name": "decant", "old": 1}, {"name": "other"}, 7]'
    entry = {"name": "decant", "url": "u"}
    merged = NamedEntries().merged(before, entry)

    assert json.loads(merged) == [{"name": "other"}, 7, entry]
    assert json.loads(NamedEntries().undone(merged, entry, before)) == [
        {"name": "other"}, 7, {"name": "decant", "old": 1},
    ]  # fmt: skip
    assert NamedEntries().undone(NamedEntries().merged("", entry), entry, "") == ""


YAML = (
    "# mine\nmodel: gpt\n\nread:\n  - a.md\nopenai-api-base:\n  http://other\nauto-commits: false"
)


def test_lines_of_yaml_are_replaced_and_the_others_stay():
    ours = {"model": "openai/x", "openai-api-base": "http://127.0.0.1:1/v1"}
    merged = YamlLines().merged(YAML, ours)

    assert merged == (
        "# mine\n\nread:\n  - a.md\nauto-commits: false\n"
        'model: "openai/x"\nopenai-api-base: "http://127.0.0.1:1/v1"\n'
    )
    undone = YamlLines().undone(f"{merged}dark-mode: true\n", ours, YAML)
    assert undone == (
        "# mine\n\nread:\n  - a.md\nauto-commits: false\ndark-mode: true\n"
        "model: gpt\nopenai-api-base:\n  http://other\n"
    )
    assert YamlLines().undone(undone, ours, YAML) == undone


def test_a_line_that_was_changed_meanwhile_stays():
    ours = {"model": "openai/x"}
    now = YamlLines().merged(YAML, ours).replace("openai/x", "openai/y")

    assert 'model: "openai/y"' in YamlLines().undone(now, ours, YAML)
    assert "model: gpt" not in YamlLines().undone(now, ours, YAML)


def test_toml_says_what_was_meant():
    ours = {"model": "ü:a@0.5", "n": 3, "p": {"d": {"x": "y", "z": True}}, "q": {"r": "s"}}

    assert tomllib.loads(OwnToml().merged("other = 1", ours)) == ours


def test_a_changed_file_of_ours_is_taken_apart_only_if_there_was_none():
    assert OwnToml().undone("model = 1", {}, "") == "model = 1"
    with pytest.raises(ValueError, match="replaced"):
        OwnToml().undone("model = 1", {}, "model = 2")
