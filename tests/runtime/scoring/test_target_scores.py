"""An encoder-decoder's targets are as likely after their sources as transformers says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.core.errors import InputError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.scoring.scorer import Scorer
from tests.runtime.gateway.conftest import serving
from tests.support.reference import convert_with_llamacpp
from tests.support.tiny_t5 import adapt_t5, make_t5

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.trained,
    pytest.mark.filterwarnings("ignore"),
]

ROUTE = "/v1/completions"
WHOLE = {"add_special": True}
CLOSE = 1e-4  # nats a token
SOURCES = ("on qj go th", "the vk e a eat o", "be vk")
TARGETS = ("go th", "a zx on u at vk", "e")


@pytest.fixture(scope="module")
def t5(toolchain, tmp_path_factory) -> tuple[Path, Any]:
    """A T5 with its adapter merged, in F32, and the two side by side in transformers and peft."""
    root = tmp_path_factory.mktemp("t5")
    unmerged = adapt_t5(make_t5(root / "base"), root / "lora")
    gguf = root / "t5.gguf"
    export(ExportRequest(((root / "lora", 1.0),), root / "base", ("F32",), (gguf,)), toolchain)
    return gguf, unmerged


def expected(model: Any, source: list[int], target: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).logits[0]
    found = torch.log_softmax(logits.double(), dim=-1).numpy()
    return found[np.arange(len(target)), target]


def test_a_target_is_as_likely_as_in_the_unmerged_forward(t5, toolchain):
    gguf, unmerged = t5
    with Scorer(gguf, threads=1, toolchain=toolchain) as scorer:
        pairs = [scorer.pair(source, target) for source in SOURCES for target in TARGETS]
        order = [*pairs[::2], *pairs[1::2]]  # a source comes back after others
        found = scorer.likelihoods(order)

    for (source, target), one in zip(order, found, strict=True):
        values = expected(unmerged.eval(), source, target)
        np.testing.assert_allclose(one.tokens, values, rtol=0, atol=CLOSE)


def test_a_gguf_of_llamacpps_own_converter_is_scaled_as_t5_is(t5, toolchain, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    base = t5[0].parent / "base"
    gguf = convert_with_llamacpp(toolchain, base, tmp_path / "t5.gguf", outtype="f32")
    with Scorer(gguf, threads=1, toolchain=toolchain) as scorer:
        source, target = scorer.pair(SOURCES[0], TARGETS[0])
        found = scorer.likelihoods([(source, target)])[0]

    values = expected(AutoModelForSeq2SeqLM.from_pretrained(base).eval(), source, target)
    np.testing.assert_allclose(found.tokens, values, rtol=0, atol=CLOSE)


def test_a_text_without_a_source_is_refused(t5, toolchain):
    with Scorer(t5[0], threads=1, toolchain=toolchain) as scorer:
        with pytest.raises(InputError, match="no source"):
            scorer.score([[5, 6]])


def test_the_server_scores_targets_too(t5, tmp_path):
    gguf, unmerged = t5
    sources, targets = list(SOURCES), list(TARGETS)
    asked = {"echo": True, "prompt": sources, "target": targets, "logprobs": 1}
    with serving(tmp_path, gguf, "--threads", "1") as served:
        served.wait_until_ready()
        status, answer = served.ask(ROUTE, asked)
        refusals = [
            served.ask(ROUTE, {**asked, **changes})
            for changes in ({"target": None}, {"target": "e"}, {"max_tokens": 1})
        ]
        ids = [
            [served.ask("/tokenize", {"content": one, **WHOLE})[1]["tokens"] for one in some]
            for some in (sources, targets)
        ]

    assert status == 200, answer
    assert [choice["text"] for choice in answer["choices"]] == targets
    for choice, source, target in zip(answer["choices"], *ids, strict=True):
        said = choice["logprobs"]
        values = expected(unmerged.eval(), source, target)
        np.testing.assert_allclose(said["token_logprobs"], values, rtol=0, atol=CLOSE)
        assert len(said["tokens"]) == len(said["top_logprobs"]) == len(target)
    assert [status for status, _ in refusals] == [400] * 3
    assert all("target" in answer["error"]["message"] for _, answer in refusals)
