"""The token keys of a tokenizer, written again by a later export."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from exporter.convert import converter_tokens, kept_tokens
from exporter.convert.kept_tokens import Recording, is_plain
from exporter.core.events import Note, Warn, silent
from exporter.core.last_value import LastValue
from exporter.core.paths import tokenizers_folder
from exporter.llamacpp.converter_import import imported
from tests.support.headers import header
from tests.support.other_tokenizers import make_bpe
from tests.support.tiny import make_base, make_tokenizer

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def base(tmp_path, toolchain, monkeypatch) -> Path:
    """A base with a byte-level tokenizer."""
    folder = make_base(tmp_path / "base")
    (folder / "tokenizer.model").unlink()
    make_bpe(folder, toolchain, monkeypatch)
    return folder


@pytest.fixture
def later(monkeypatch):
    """Makes this process forget what it has read, as a later one."""

    def forget() -> None:
        monkeypatch.setattr(kept_tokens, "MEMO", LastValue())

    return forget


def kept() -> list[Path]:
    return list(tokenizers_folder(os.environ).glob("*.tokens"))


def never(*_: object, **__: object) -> None:
    pytest.fail("the tokenizer was loaded again")


def test_a_later_export_writes_the_same_and_loads_no_tokenizer(base, toolchain, later, monkeypatch):
    first = header(base, toolchain)
    assert len(kept()) == 1
    later()
    monkeypatch.setattr(converter_tokens, "load_tokenizer", never)

    assert header(base, toolchain) == first


def test_the_export_that_wrote_them_reads_no_file(base, toolchain, monkeypatch):
    first = header(base, toolchain)
    read = kept_tokens.KeptValues.read

    def config_only(values, path):
        return read(values, path) if path.suffix == ".config" else never()

    monkeypatch.setattr(kept_tokens.KeptValues, "read", config_only)

    assert header(base, toolchain) == first


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", {"chat_template": "{{ messages[0].content }}"}),
        ("generation_config.json", {"eos_token_id": [2, 1]}),
        ("config.json", {"bos_token_id": 3}),
    ],
)
def test_another_file_is_read_anew(base, toolchain, later, name, change):
    first = header(base, toolchain)
    file = base / name
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(held | change))
    later()
    second = header(base, toolchain)

    assert len(kept()) == 2
    shutil.rmtree(tokenizers_folder(os.environ))
    later()
    assert header(base, toolchain) == second
    assert (second == first) == (name == "config.json")  # the tokenizer says which token begins


@pytest.mark.parametrize("damage", [b"", b"x" * 200, b"0" * 64 + b"{}"])
def test_a_damaged_one_counts_as_missing(base, toolchain, later, damage):
    first = header(base, toolchain)
    (file,) = kept()
    file.write_bytes(damage + file.read_bytes()[len(damage) : 9000])
    later()

    assert header(base, toolchain) == first


def test_tokens_of_bytes_are_written_as_they_were(tmp_path, toolchain, later, monkeypatch):
    base = make_base(tmp_path / "pieces")
    make_tokenizer(base, letters="aäöü大")
    first = header(base, toolchain)
    later()
    monkeypatch.setattr(converter_tokens, "load_tokenizer", never)

    assert header(base, toolchain) == first


def test_files_that_the_converter_gets_changed_are_kept_too(
    tmp_path, toolchain, later, monkeypatch
):
    base = make_base(tmp_path / "pieces")
    (base / "tokenizer.model").unlink()
    first = header(base, toolchain)
    later()
    monkeypatch.setattr(converter_tokens, "load_tokenizer", never)

    assert header(base, toolchain) == first
    assert kept_tokens.MEMO.last[1].files


def test_a_tokenizer_that_names_code_is_not_kept(base, toolchain):
    settings = json.loads((base / "tokenizer_config.json").read_text())
    named = {**settings, "auto_map": {"AutoTokenizer": ["own.Own", None]}}

    def place():
        from conversion.llama import LlamaModel

        with converter_tokens.converter_tokens(base, {}, LlamaModel, False, "b", silent) as found:
            return found.store, found.content

    with imported(toolchain):
        assert all(place())
        (base / "tokenizer_config.json").write_text(json.dumps(named))
        assert not any(place())


def test_a_folder_that_cannot_be_written_to_costs_no_more_than_the_time(base, toolchain, later):
    tokenizers_folder(os.environ).parent.mkdir(parents=True)
    tokenizers_folder(os.environ).write_text("in the way")
    first = header(base, toolchain)
    later()

    assert header(base, toolchain) == first


class TestRecording:
    """What is kept of keys that were written and then corrected."""

    def recorded(self, written, correct, report=silent):
        gguf = pytest.importorskip("gguf")
        from gguf.gguf_writer import GGUFValue

        def value(one):
            kind = gguf.GGUFValueType.get_type(one)
            return GGUFValue(one, kind)

        recording, held = Recording(report), {"general.name": value("m")}
        before = set(held)
        held.update({key: value(one) for key, one in written.items()})
        recording.wrote(before, held)
        held["later"] = value(1)
        before = kept_tokens.copied(held)
        correct(held, value, recording.report)
        return recording.corrected(before, held), held

    def replayed(self, keys, value_of=None):
        from gguf import GGUFValueType
        from gguf.gguf_writer import GGUFValue

        held = {"general.name": GGUFValue("m", GGUFValueType.STRING)}
        keys.write(held)
        held["later"] = GGUFValue(1, GGUFValueType.INT32)
        events = []
        keys.settle(held, events.append)
        return held, events

    def test_keys_set_again_changed_in_place_and_removed_come_in_the_same_order(self):
        def correct(held, value, report):
            held.pop("a")
            held["a"] = value(9)
            held["c"].value[0] = "changed"
            held.pop("d")
            held["e"] = value("new")
            report(Note("of the tokenizer"))

        keys, held = self.recorded({"a": 1, "b": 2, "c": ["x", "y"], "d": 4}, correct)
        again, events = self.replayed(keys)

        assert list(again.items()) == list(held.items())
        assert events == [Note("of the tokenizer")]

    def test_another_key_that_was_corrected_too_keeps_all_from_being_kept(self):
        def correct(held, value, report):
            held["general.name"] = value("phi-3")

        assert self.recorded({"a": 1}, correct)[0] is None

    def test_a_value_that_json_changes_is_not_kept(self):
        keys, _ = self.recorded({"a": 1}, lambda *_: None)
        assert keys.as_json() is not None
        keys.events = [Warn("kept, too")]
        assert keys.as_json()["events"] == [["Warn", "kept, too"]]
        assert [is_plain(one) for one in (["x", b"y"], [1, True], [True], [1, 2.0], [], None)] == [
            False
        ] * 6
        assert all(is_plain(one) for one in (True, 1, 2.5, "x", b"x", ["x"], [b"x"], [1, 2], [0.5]))
