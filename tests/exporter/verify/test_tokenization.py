"""Vocabularies and texts: what an export could have made right, and what llama.cpp cannot do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from exporter.convert.vocabulary_memo import MEMO
from exporter.core.gguf import read_gguf
from exporter.llamacpp.converter_import import imported
from tests.support.mutate import set_item, set_text, swap_items
from tests.support.other_tokenizers import make_bpe
from tests.support.raw import edit_json
from tests.support.tiny import make_base
from tests.support.tiny_t5 import make_t5
from tests.support.verified import check

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

TOKENS, SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores"
TYPES, MERGES = "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
PRE = "tokenizer.ggml.pre"
NORMAL = 1


@pytest.fixture(scope="module")
def bpe_base(toolchain, tmp_path_factory) -> Path:
    """A base whose byte-level tokenizer normalizes to NFC, as Qwen's does."""
    folder = make_base(tmp_path_factory.mktemp("bpe") / "base", num_hidden_layers=1)
    (folder / "tokenizer.model").unlink()
    with pytest.MonkeyPatch.context() as patch:
        make_bpe(folder, toolchain, patch)
    edit_json(folder / "tokenizer.json", normalizer={"type": "NFC"})
    return folder


@pytest.fixture
def known(toolchain, monkeypatch) -> None:
    """Have the converter take the tiny byte-level tokenizer for GPT-2's."""
    with imported(toolchain):
        from conversion import TextModel

        monkeypatch.setattr(TextModel, "get_vocab_base_pre", lambda self, tokenizer: "gpt-2")


def items(path: Path, key: str) -> tuple:
    return read_gguf(path, keep_items=1 << 20).metadata[key].items


def normal_pair(path: Path) -> tuple[int, int]:
    """Two plain tokens of one length that are far apart."""
    texts, types = items(path, TOKENS), items(path, TYPES)
    plain = [n for n, kind in enumerate(types) if kind == NORMAL and len(texts[n].encode()) == 2]
    return plain[0], plain[-1]


def wrong(found, *names: str) -> str:
    """The problems of some checks; all of them must have some."""
    assert all(check(found, name).problems for name in names), names
    return "\n".join(text for name in names for text in check(found, name).problems)


def test_normalized_text_is_compared_and_what_others_do_is_a_note(
    pour, verify, bpe_base, tmp_path, known
):
    found = verify(pour(bpe_base, None, tmp_path / "m.gguf", "F16"), bpe_base, None)

    found.refuse()
    told = next(note for note in check(found, "tokenizer").notes if "other programs cut" in note)
    assert "normalizes text, which llama.cpp does not" in told
    assert "in the GGUF, [" in told
    assert "in transformers" in told


def test_a_swapped_token_is_named(pour, verify, bpe_base, tmp_path, known):
    file = pour(bpe_base, None, tmp_path / "m.gguf", "F16")
    swap_items(file, TOKENS, *normal_pair(file))

    told = wrong(verify(file, bpe_base, None), "settings", "tokenizer")

    assert f"{TOKENS}[{normal_pair(file)[0]}] is" in told
    assert "2 of 279 tokens are others: token" in told


def test_swapped_merges_are_named(pour, verify, bpe_base, tmp_path, known):
    file = pour(bpe_base, None, tmp_path / "m.gguf", "F16")
    merges = items(file, MERGES)
    same = [n for n, merge in enumerate(merges) if len(merge.encode()) == len(merges[0].encode())]
    swap_items(file, MERGES, same[0], same[-1])

    told = wrong(verify(file, bpe_base, None), "settings", "tokenizer")

    assert "2 merges are others: merge 0 is" in told


def test_another_pre_tokenizer_is_found(pour, verify, bpe_base, tmp_path, known):
    file = pour(bpe_base, None, tmp_path / "m.gguf", "F16")
    set_text(file, PRE, "bloom")

    told = wrong(verify(file, bpe_base, None), "settings")

    assert f"{PRE} is 'bloom' and should be 'gpt-2'" in told


def test_a_special_token_that_became_a_plain_one_is_named(pour, verify, bpe_base, tmp_path, known):
    file = pour(bpe_base, None, tmp_path / "m.gguf", "F16")
    set_item(file, TYPES, 2, NORMAL, "<i")

    told = wrong(verify(file, bpe_base, None), "tokenizer")

    assert "token 2 '</s>' was added to the tokenizer, and the GGUF has it as a plain one" in told


def test_wrong_scores_of_pieces_are_found(pour, verify, tiny_base, tmp_path):
    file = pour(tiny_base, None, tmp_path / "m.gguf", "F16")
    for token, score in enumerate(items(file, SCORES)):
        set_item(file, SCORES, token, -score, "<f")

    told = wrong(verify(file, tiny_base, None), "settings", "tokenizer")

    assert f"{SCORES}[" in told
    assert "which is merged earlier" in told


def test_scores_that_only_keep_the_order_are_right(pour, verify, tiny_base, tmp_path):
    file = pour(tiny_base, None, tmp_path / "m.gguf", "F16")
    for token, score in enumerate(items(file, SCORES)):
        set_item(file, SCORES, token, score * 2 if score < 0 else score, "<f")

    verify(file, tiny_base, None).refuse()


def test_a_converter_that_writes_wrong_scores_is_no_excuse(
    pour, verify, tiny_base, tmp_path, toolchain, monkeypatch
):
    monkeypatch.setattr(MEMO, "last", None)
    with imported(toolchain):
        import gguf

        right = gguf.GGUFWriter.add_token_scores
        monkeypatch.setattr(
            gguf.GGUFWriter, "add_token_scores", lambda self, s: right(self, [-1000.0] * len(s))
        )
    found = verify(pour(tiny_base, None, tmp_path / "m.gguf", "F16"), tiny_base, None)

    assert check(found, "settings").problems == ()
    assert "which is merged earlier" in wrong(found, "tokenizer")


def test_a_unigram_tokenizer_with_a_charsmap_passes_and_its_scores_are_compared(
    pour, verify, tmp_path
):
    """As mt0 and T5 have it; saved by transformers 5, tokenizer.json included."""
    from transformers import AutoTokenizer

    base = make_t5(tmp_path / "base")
    AutoTokenizer.from_pretrained(base).save_pretrained(base)
    assert "precompiled_charsmap" in (base / "tokenizer.json").read_text()
    file = pour(base, None, tmp_path / "m.gguf", "F16")

    found = verify(file, base, None)
    found.refuse()
    assert check(found, "tokenizer").notes
    charsmap = items(file, "tokenizer.ggml.precompiled_charsmap")
    set_item(file, "tokenizer.ggml.precompiled_charsmap", 40, (charsmap[40] + 1) % 256, "<B")
    assert "precompiled_charsmap[40] is" in wrong(verify(file, base, None), "settings")
    set_item(file, SCORES, 100, -1.5, "<f")
    assert "scores are others: that of token 100" in wrong(verify(file, base, None), "tokenizer")


def test_another_normalizer_in_the_file_is_wrong(pour, verify, bpe_base, tmp_path, known):
    from exporter.verify.tokenization import Cuts, compare_normalizer

    cuts = Cuts(None, read_gguf(pour(bpe_base, None, tmp_path / "m.gguf", "F16")))
    compare_normalizer('{"type":"NFC"}', '{"type": "NFC"}', cuts)
    assert (cuts.problems, cuts.notes) == ([], [])
    compare_normalizer(None, '{"type": "NFC"}', cuts)
    assert (cuts.problems, len(cuts.notes)) == ([], 1)
    compare_normalizer('{"type": "NFD"}', '{"type": "NFC"}', cuts)
    compare_normalizer('{"type": "NFD"}', None, cuts)
    assert [text.rpartition(" be ")[2] for text in cuts.problems] == ['{"type": "NFC"}', "absent"]


def test_a_second_end_of_turn_that_llama_cpp_does_not_know_is_named(
    pour, verify, tiny_base, tmp_path
):
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    file = pour(tiny_base, None, tmp_path / "m.gguf", "F16")
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))

    told = wrong(verify(file, other, None), "special tokens")

    assert "3 '<|user|>' ends a generation, and llama.cpp does not stop there" in told
