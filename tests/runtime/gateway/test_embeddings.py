"""Vectors and scores of `decant serve`, against transformers' own, one text at a time."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.pipeline import export
from exporter.request import ExportRequest
from tests.architectures import SIZE
from tests.embedders import (
    make_dense_embedder,
    make_embedder,
    make_pieces,
    make_ranker,
    scores,
    shake,
    vectors,
)
from tests.runtime.gateway.conftest import Served, serving

pytestmark = pytest.mark.llamacpp

TEXTS = [
    "the cat sat on the mat",
    "where does a bee live",
    "a",
    "to be or not to be, " * 9,
    "hello",
]
LIST = TEXTS * 4
EMBEDDERS = {"causal-mean": ("qwen3", "mean"), "causal-last": ("qwen3", "last"),
             "bert-mean": ("bert", "mean"), "bert-cls": ("bert", "cls")}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Embedders as sentence-transformers saves them, and rerankers, by name. Treat as read-only."""
    root = tmp_path_factory.mktemp("embedders")
    made = {name: make_embedder(root / name, *how) for name, how in EMBEDDERS.items()}
    made["dense"] = make_dense_embedder(root / "dense", 96, 64)
    made["narrow"] = make_dense_embedder(root / "narrow", 32)
    made["raw"] = make_embedder(root / "raw", "bert", "mean", normalize=False)
    prompts = {"prompts": {"query": "where is ", "document": ""}, "default_prompt_name": None}
    for name, default in (("bert-mean", None), ("raw", "query")):
        said = json.dumps(prompts | {"default_prompt_name": default})
        (made[name] / "config_sentence_transformers.json").write_text(said)
    made |= {f"rank-{kind}": make_ranker(root / f"rank-{kind}", kind) for kind in ("bert", "xlmr")}
    made["Qwen3-Reranker-tiny"] = root / "Qwen3-Reranker-tiny"
    make_judge(made["Qwen3-Reranker-tiny"])
    return made


def make_judge(folder: Path) -> None:
    """A causal model that says yes or no of a pair."""
    import torch
    import transformers

    folder.mkdir()
    make_pieces(folder, words=("yes", "no", "|"), prefix=False)
    config = transformers.Qwen3Config(**SIZE | {"max_position_embeddings": 1024}, head_dim=16)
    torch.manual_seed(0)
    shake(model := transformers.Qwen3ForCausalLM(config))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(folders, toolchain, tmp_path_factory) -> Iterator[Served]:
    """All of them at once."""
    root = tmp_path_factory.mktemp("served")
    files = [root / f"{name}.gguf" for name in folders]
    for folder, file in zip(folders.values(), files, strict=True):
        export(ExportRequest((), folder, ("F32",), (file,)), toolchain)
    with serving(root, *files) as found:
        yield found


def asked(served: Served, model: str, texts: object, **more: Any) -> np.ndarray[Any, Any]:
    """The vectors of texts that are asked for at once: (texts, width)."""
    status, body = served.ask("/v1/embeddings", {"model": model, "input": texts, **more})
    assert status == 200, body
    return np.array([entry["embedding"] for entry in body["data"]])


def reference(folder: Path, texts: list[str], pooling: str) -> np.ndarray[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    return np.asarray(vectors(model, AutoTokenizer.from_pretrained(folder), texts, pooling))


@pytest.mark.parametrize("name", EMBEDDERS)
def test_each_vector_of_a_list_is_that_of_the_text_alone(name, served, folders):
    together = asked(served, name, LIST)
    alone = np.concatenate([asked(served, name, text) for text in TEXTS])
    expected = reference(folders[name], TEXTS, EMBEDDERS[name][1])

    assert np.abs(together - np.tile(alone, (4, 1))).max() < 1e-5
    assert np.abs(alone - expected).max() < 1e-3  # llama.cpp keeps keys and values in 16 bits
    assert expected[0] @ expected[1] < 0.999  # or any two texts would do


def test_a_text_may_be_as_long_as_the_context_and_no_longer(served, folders):
    """256 tokens with those that begin and end it, in a list beside others."""
    whole, more = "a " * 254, "a " * 255
    expected = reference(folders["bert-mean"], [whole], "mean")
    found = asked(served, "bert-mean", ["hello", whole, "to be", whole])
    status, body = served.ask("/v1/embeddings", {"model": "bert-mean", "input": ["a", more]})

    assert np.abs(found[[1, 3]] - expected).max() < 1e-3
    assert status == 400
    assert "a text of 257 tokens is too large: this model takes 256" in body["error"]["message"]
    assert body["error"]["code"] == "context_length_exceeded"


def test_dense_layers_come_after_the_pooling(served, folders):
    for name, width in (("dense", 64), ("narrow", 32)):
        found = asked(served, name, TEXTS)
        assert np.abs(found - dense_reference(folders[name], TEXTS)).max() < 2e-3
        assert found.shape == (len(TEXTS), width)


def dense_reference(folder: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """Mean, then each dense layer, then length 1: (texts, width)."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = []
    for text in texts:
        with torch.no_grad():
            state = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        for path in sorted(folder.glob("*_Dense")):
            state = load_file(path / "model.safetensors")["linear.weight"] @ state
        rows.append(torch.nn.functional.normalize(state, dim=0))
    return torch.stack(rows).numpy()


def test_a_prompt_goes_before_each_text_where_it_is_named(served):
    with_prompt = asked(served, "bert-mean", TEXTS, prompt_name="query")
    by_hand = asked(served, "bert-mean", [f"where is {text}" for text in TEXTS])
    ollama = {"model": "bert-mean", "input": TEXTS, "prompt_name": "query"}
    _, answered = served.ask("/api/embed", ollama)
    assert "embeddings" in answered, answered

    assert np.abs(with_prompt - by_hand).max() < 1e-5
    assert np.abs(np.array(answered["embeddings"]) - by_hand).max() < 1e-5
    empty = asked(served, "bert-mean", TEXTS, prompt_name="document")
    assert np.abs(empty - asked(served, "bert-mean", TEXTS)).max() < 1e-5


@pytest.mark.parametrize(
    ("asking", "why"),
    [
        ({"prompt_name": "no"}, "there is no prompt 'no': this model has 'query', 'document'"),
        ({"prompt_name": "query", "input": [[5, 6]]}, "goes with texts"),
        ({"dimensions": 0}, "`dimensions` must be a positive number"),
        ({"dimensions": 65}, "`dimensions` is 65, and this model's vectors have 64"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(served, asking, why):
    body = {"model": "bert-mean", "input": "a", **asking}
    status, answer = served.ask("/v1/embeddings", body)

    assert status == 400
    assert why in answer["error"]["message"]


def test_vectors_have_length_1_unless_they_are_asked_for_as_they_are(served, folders):
    """Also of a folder without Normalize, whose vectors sentence-transformers leaves long."""
    texts = {"prompt_name": ""}
    plain = asked(served, "raw", TEXTS, embd_normalize=-1, **texts)
    short = asked(served, "raw", TEXTS, embd_normalize=-1, dimensions=8, **texts)
    expected = reference(folders["raw"], TEXTS, "mean")
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)

    assert np.abs(lengths - 1).min() > 0.1
    assert np.abs(plain / lengths - expected).max() < 1e-3
    assert np.abs(asked(served, "raw", TEXTS, **texts) - expected).max() < 1e-3
    assert np.abs(short - plain[:, :8]).max() < 1e-4


def test_a_models_default_prompt_goes_before_texts_that_name_none(served):
    unnamed, named, bare = (
        asked(served, "raw", "a bee", **more)
        for more in ({}, {"prompt_name": "query"}, {"prompt_name": ""})
    )

    assert np.abs(unnamed - named).max() < 1e-5
    assert np.abs(unnamed - bare).max() > 0.01


def test_fewer_dimensions_are_the_first_ones_as_long_as_1(served):
    whole = asked(served, "bert-mean", TEXTS)[:, :8]
    short = asked(served, "bert-mean", TEXTS, dimensions=8)
    body = {"model": "bert-mean", "input": TEXTS, "dimensions": 8}
    _, packed = served.ask("/v1/embeddings", {**body, "encoding_format": "base64"})
    _, ollama = served.ask("/api/embed", body)
    held = [base64.b64decode(entry["embedding"]) for entry in packed["data"]]

    assert np.abs(short - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() < 1e-5
    assert np.abs(np.array([np.frombuffer(one, "<f4") for one in held]) - short).max() < 1e-5
    assert np.abs(np.array(ollama["embeddings"]) - short).max() < 1e-5


def test_ollamas_older_route_gives_the_same_vector_and_long_texts_are_cut(served):
    _, old = served.ask("/api/embeddings", {"model": "bert-mean", "prompt": TEXTS[0]})
    _, cut = served.ask("/api/embed", {"model": "bert-mean", "input": ["a " * 254, "a " * 900]})

    assert np.abs(np.array(old["embedding"]) - asked(served, "bert-mean", TEXTS[0])[0]).max() < 1e-5
    assert np.abs(np.subtract(*cut["embeddings"])).max() < 1e-5


QUERY = "where does a bee live"
DOCUMENTS = ["the cat sat on the mat", "hello there", "in the house of the rising sun", "a hive"]


def ranked(served: Served, model: str, documents: list[str]) -> list[float]:
    body = {"model": model, "query": QUERY, "documents": documents}
    status, answer = served.ask("/v1/rerank", body)
    assert status == 200, answer
    found = sorted(answer["results"], key=lambda result: result["index"])
    return [result["relevance_score"] for result in found]


@pytest.mark.parametrize("name", ["rank-bert", "rank-xlmr"])
def test_a_cross_encoder_scores_pairs_as_transformers_does(name, served, folders):
    """A BERT's also by the second text's token type, and through its pooler."""
    expected = scores(folders[name], QUERY, DOCUMENTS)

    assert ranked(served, name, DOCUMENTS * 3) == pytest.approx(expected * 3, abs=1e-3)
    assert max(expected) - min(expected) > 5e-3


def test_a_reranker_of_two_words_gives_the_chance_of_yes(served, folders):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = "Qwen3-Reranker-tiny"
    model = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders[name])
    expected = []
    for document in DOCUMENTS:
        prompt = JUDGED.replace("{query}", QUERY).replace("{document}", document)
        body = {"model": name, "content": prompt, "add_special": False, "parse_special": True}
        _, cut = served.ask("/tokenize", body)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([cut["tokens"]])).logits[0, -1]
        words = tokenizer.convert_tokens_to_ids(["yes", "no"])
        expected.append(float(logits[words].softmax(0)[0]))
    status, answer = served.ask("/v1/embeddings", {"model": name, "input": "a"})

    assert ranked(served, name, DOCUMENTS) == pytest.approx(expected, abs=1e-3)
    assert max(expected) - min(expected) > 5e-3
    assert (status, answer["error"]["message"]) == (
        501,
        "this model ranks documents: it has no vectors",
    )


JUDGED = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and"
    ' the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer"
    " the query\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""How Qwen3-Reranker is asked, by its model card."""
