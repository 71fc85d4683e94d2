"""llama.cpp in a child process: what it does not load, and what ends it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.core.errors import EngineDiedError, ModelError, VerifyError
from exporter.llamacpp.converter_import import imported
from exporter.verify.logits_engine import LogitsEngine, gguf_logits
from tests.support.mutate import set_number
from tests.support.verified import check, values_of

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

EPSILON = "llama.attention.layer_norm_rms_epsilon"


@pytest.fixture
def file(pour, tiny_base, tiny_adapter, tmp_path) -> Path:
    return pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "F16")


def test_a_loaded_file_says_so(verify, file, tiny_base, tiny_adapter):
    loading = check(verify(file, tiny_base, tiny_adapter), "loading")

    assert loading.problems == ()
    assert loading.detail == "llama.cpp loads it and computes 9 tokens"


def test_what_llama_cpp_refuses_is_wrong_in_its_own_words(verify, file, tiny_base, tiny_adapter):
    set_number(file, "llama.attention.head_count", 3)

    found = verify(file, tiny_base, tiny_adapter)

    with pytest.raises(
        VerifyError, match=r"cannot load `.*m\.gguf`; its last words:\n.*error load"
    ):
        found.refuse()


def test_an_abort_ends_only_the_child_and_its_last_words_are_told(
    warm_decant, verify, file, tiny_base, tiny_adapter, toolchain
):
    set_number(file, EPSILON, -1.0)  # ggml asserts that it is none below 0

    (problem,) = check(verify(file, tiny_base, tiny_adapter), "loading").problems
    assert "died of SIGABRT while it computed some tokens" in problem
    assert "GGML_ASSERT" in problem
    with pytest.raises(EngineDiedError, match="GGML_ASSERT"):
        list(gguf_logits(file, [[1, 2, 3]], toolchain))
    made = warm_decant("verify", file, "--base", tiny_base, "--adapter", tiny_adapter, "--json")
    assert made.returncode == 7
    assert "GGML_ASSERT" in json.loads(made.stdout)["checks"][-1]["problems"][0]


def test_what_comes_out_must_be_finite(verify, file, tiny_base, tiny_adapter):
    values_of(file, "output_norm.weight").view(np.float32)[:] = np.inf

    (problem,) = check(verify(file, tiny_base, tiny_adapter), "loading").problems
    assert "not finite" in problem


def test_what_does_not_fit_in_memory_is_not_judged(
    verify, file, tiny_base, tiny_adapter, monkeypatch
):
    monkeypatch.setattr("exporter.verify.loading.available_nbytes", lambda: 1 << 20)

    found = verify(file, tiny_base, tiny_adapter)

    found.refuse()
    loading = check(found, "loading")
    assert not loading.judged
    assert "1.05 MB are free" in loading.notes[0]
    assert "loading not judged" in found.summary
    assert check(found, "tokenizer").numbers["texts"] > 50  # the vocabulary fits


def test_a_child_that_was_killed_says_nothing_of_the_file(
    verify, file, tiny_base, tiny_adapter, monkeypatch
):
    asked = LogitsEngine.ask

    def kill(self, verb, **arguments):
        if verb == "probe":
            self.process.kill()
            self.process.wait()
        return asked(self, verb, **arguments)

    monkeypatch.setattr(LogitsEngine, "ask", kill)
    found = verify(file, tiny_base, tiny_adapter)

    found.refuse()
    assert "where memory runs out" in check(found, "loading").notes[0]


def test_a_file_that_is_none_is_refused_and_the_child_goes(toolchain, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(60))
    with LogitsEngine(toolchain) as engine:
        with pytest.raises(ModelError, match=r"cannot load"):
            engine.load(tmp_path / "m.gguf")
    assert engine.process.returncode is not None


def test_an_encoder_decoder_encodes_and_decodes_and_its_logits_are_not_judged(
    warm_decant, pour, tmp_path
):
    from tests.support.tiny_t5 import adapt_t5, make_t5

    base, adapter = make_t5(tmp_path / "base"), tmp_path / "lora"
    adapt_t5(base, adapter)
    file = pour(base, adapter, tmp_path / "m.gguf", "Q8_0")

    made = warm_decant("verify", file, "--base", base, "--adapter", adapter, "--json")

    assert made.returncode == 0, made.stderr
    *_, loading, logits = json.loads(made.stdout)["checks"]
    assert (loading["name"], loading["numbers"]["tokens"]) == ("loading", 9)
    assert (logits["name"], logits["judged"]) == ("logits", False)
    assert "logits are compared of decoders only" in logits["notes"][0]


def test_a_model_of_embeddings_embeds(pour, verify, tmp_path, toolchain, monkeypatch):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    base = tmp_path / "base"
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{a}" for a in letters)]
    base.mkdir()
    (base / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(vocab=str(base / "vocab.txt")).save_pretrained(base)
    torch.manual_seed(0)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), intermediate_size=96, **size)
    BertModel(config, add_pooling_layer=False).save_pretrained(base)
    with imported(toolchain):
        from conversion import TextModel

        # the converter knows tokenizers by what they make of one text
        monkeypatch.setattr(TextModel, "get_vocab_base_pre", lambda self, tokenizer: "jina-v2-en")
    file = pour(base, None, tmp_path / "m.gguf", "F16")

    found = verify(file, base, None)

    found.refuse()
    assert check(found, "loading").numbers["tokens"] > 2
