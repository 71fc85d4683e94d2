"""A second conversion in one process: from memory while the files are the same, else read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from exporter.convert.vocabulary_memo import MEMO
from exporter.inputs import tokenizer_memo
from exporter.inputs.tokenizer_memo import TokenizerMemo, tokenizer_files
from tests.support.headers import header, header_in_a_fresh_process
from tests.support.tiny import make_base, make_tokenizer

pytestmark = [pytest.mark.trained, pytest.mark.filterwarnings("ignore")]


@pytest.mark.llamacpp
@pytest.mark.slow
def test_conversions_in_turn_write_what_a_fresh_process_writes(toolchain, tmp_path):
    one = make_base(tmp_path / "one")
    other = make_base(tmp_path / "other")
    make_tokenizer(other, letters="абвгдежзийклмнопрстуфхцч")
    expected = {base: header_in_a_fresh_process(base) for base in (one, other)}
    assert expected[one] != expected[other]

    for base in (one, one, other, other, one):
        assert header(base, toolchain) == expected[base]
    kept = MEMO.last
    moved = shutil.copytree(one, tmp_path / "moved")
    assert header(moved, toolchain) == expected[one]
    assert MEMO.last is kept

    changed = json.loads((one / "tokenizer_config.json").read_text())
    (one / "tokenizer_config.json").write_text(json.dumps({**changed, "chat_template": "new"}))
    assert b"new" in header(one, toolchain)


@pytest.mark.llamacpp
def test_a_conversion_hashes_the_tokenizer_once(toolchain, tmp_path, monkeypatch):
    name = "tokenizer_config.json"
    base, read = make_base(tmp_path / "base"), []
    content, hashed = (base / name).read_bytes(), tokenizer_memo.hashed

    def counted(files):
        found = dict(files)
        read.extend(key for key in found if found[key] == content)
        return hashed(found.items())

    monkeypatch.setattr(tokenizer_memo, "hashed", counted)
    header(base, toolchain)

    assert read == [name]


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    return shutil.copytree(tiny_base, tmp_path / "base")


def test_a_tokenizer_is_loaded_once_while_its_files_are_the_same(base, tmp_path):
    memo = TokenizerMemo()
    first = memo.load(base)
    (tmp_path / "linked").mkdir()
    for path in base.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)

    assert memo.load(tmp_path / "linked") is first
    (base / "chat_template.jinja").write_text("another")
    second = memo.load(base)
    assert second is not first
    assert second.chat_template == "another"


def test_a_tokenizers_file_with_a_version_counts_too(base):
    before = tokenizer_files(base).content
    (base / "tokenizer.model.v3").write_bytes(b"1")
    first = tokenizer_files(base).content
    (base / "tokenizer.model.v3").write_bytes(b"2")

    assert len({before, first, tokenizer_files(base).content}) == 3


def test_code_is_trusted_only_where_it_is_asked_for(base):
    """With and without trust the same files may give two tokenizers if they name code."""
    memo = TokenizerMemo()
    assert memo.load(base) is memo.load(base, trust_remote_code=True)

    settings = json.loads((base / "tokenizer_config.json").read_text())
    named = {**settings, "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (base / "tokenizer_config.json").write_text(json.dumps(named))
    files = tokenizer_files(base)
    assert files.has_code
    untrusted = memo.load(base, trust_remote_code=False)
    assert memo.last == ((files.content, False), untrusted)
    assert untrusted is memo.load(base)
