"""Likelihoods from servers: decant's own, and others by what they answer."""

from __future__ import annotations

import pytest

from exporter.core.errors import EngineError
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.engine.adapters import Adapter
from runtime.engine.memory_fit import FitOptions
from runtime.engine.opened_model import open_model
from runtime.engine.remote import parse_url
from runtime.engine.selection import AdapterSelection
from runtime.evaluation.local_model import LocalEngines, LocalModel
from runtime.evaluation.prompt_likelihoods import PromptScorer, likelihood_in, prompt_scorer
from runtime.evaluation.remote_model import RemoteModel
from tests.runtime.gateway.conftest import serving

ASKS = [{"role": "user", "content": "What does a cow say?"}]
TEXTS = ("A cow says moo.", "Arr, a cow be sayin' moo, matey!", "blue", "naïve 牛 🐄!")


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.filterwarnings("ignore")
def test_decants_own_server_gives_what_the_local_model_gives(
    demo_models, pirate_lora, toolchain, tmp_path
):
    path = tmp_path / "base.gguf"
    export(ExportRequest((), demo_models.base, ("F32",), (path,)), toolchain)
    engines = LocalEngines(
        open_model(path, (Adapter("pirate", pirate_lora, 0.5),)), FitOptions(256, 1)
    )
    arguments = (path, "--adapter", f"pirate={pirate_lora}", "--ctx", 256, "--threads", 1)
    try:
        with serving(tmp_path, *arguments) as served:
            served.wait_until_ready()
            for name, choice in (
                ("base", AdapterSelection()),
                ("base:pirate@0.5", AdapterSelection("pirate", 0.5)),
            ):
                local = LocalModel(name, engines, choice, {})
                remote = RemoteModel(name, parse_url(served.url, None), name)
                assert remote.why_no_likelihoods() == ""
                for asks in (ASKS, []):
                    ours, theirs = (one.likelihoods(asks, TEXTS) for one in (local, remote))
                    assert [one.tokens for one in theirs] == [one.tokens for one in ours]
                    for one, other in zip(theirs, ours, strict=True):
                        assert one.logprob == pytest.approx(other.logprob, abs=1e-4 * one.tokens)
            long = [{"role": "user", "content": "cow " * 400}]
            assert str(remote.likelihoods(long, ["x"])).startswith("exceeds the context: 4")
    finally:
        engines.stop()


def answer(names, values, *, shift=0, index=0):
    """A choice whose tokens begin `shift` characters late in the text."""
    offsets, count = [], 0
    for place, name in enumerate(names):
        offsets.append(count)
        count += shift if shift and place == 0 else 0 if name == "<s>" else len(name)
    found = {"tokens": names, "token_logprobs": values, "text_offset": offsets}
    return {"index": index, "text": "".join(names), "logprobs": found}


@pytest.mark.parametrize(
    ("choice", "prompt", "text", "wanted", "tokens"),
    [
        (answer(["The", " sky", " is", " blue"], [None, -1, -2, -3]), "The sky", " is blue", -5, 2),
        (answer(["<s>", "The", " is", " so"], [None, -1, -2, -3]), "The", " is so", -5, 2),
        (answer(["<s>", "The", " is"], [None, -1, -2], shift=3), "The", " is", -2, 1),
        (answer(["The", " is", " so", "!"], [None, -1, -2, -9]), "The", " is so", -3, 2),
        (answer(["The", " is", " so"], [None, -1, -2]), "The i", "s so", -2, 1),
        (answer(["The", " iso"], [None, -1]), "The i", "so", -1, 1),
        (answer(["The", " is"], [None, -1]), "", "The is", -1, 1),
        (answer(["<s>", "The", " is"], [None, -1, -4]), "", "The is", -5, 2),
    ],
    ids=[
        "plain", "hidden beginning", "counted beginning", "one generated", "across the boundary",
        "nothing but across", "no prompt", "no prompt, but a beginning",
    ],
)  # fmt: skip
def test_a_text_is_found_by_the_characters_before_it(choice, prompt, text, wanted, tokens):
    found = likelihood_in(choice, prompt, text)

    assert (found.logprob, found.tokens) == (wanted, tokens)


class Server:
    """Answers a probe as a kind of server does."""

    def __init__(self, choice, *, refuses_zero=False, renders=True) -> None:
        self.choice, self.refuses_zero, self.renders = choice, refuses_zero, renders

    def post(self, route, body):
        if route == "/apply-template":
            if not self.renders:
                raise EngineError("the server refused the request (404): no such route")
            return {"prompt": "<user>"}
        if self.refuses_zero and body["max_tokens"] == 0:
            raise EngineError("max_tokens must be at least 1")
        return {"choices": [self.choice]}


GOOD = answer(["The", " sky", " is", " blue", " today", "."], [None, -1, -2, -3, -1, -1])


def test_a_server_that_generates_at_least_one_token_is_asked_for_one():
    scorer = prompt_scorer(Server(GOOD, refuses_zero=True).post, "m", has_questions=True)

    assert isinstance(scorer, PromptScorer)
    assert scorer.limit == 1


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"text": " blue", "logprobs": {"content": []}}, "do not repeat the prompt"),
        ({"text": " blue", "logprobs": None}, "do not repeat the prompt"),
        (answer(["The", " sky is blue today."], [None, None]), "no log-probabilities"),
    ],
    ids=["llama-server", "without logprobs", "nulls"],
)
def test_a_server_that_does_not_repeat_prompts_says_so(choice, words):
    found = prompt_scorer(Server(choice).post, "m", has_questions=False)

    assert isinstance(found, str)
    assert words in found


def test_conversations_need_a_server_that_renders_them():
    server = Server(GOOD, renders=False)

    assert "does not render" in str(prompt_scorer(server.post, "m", has_questions=True))
    assert isinstance(prompt_scorer(server.post, "m", has_questions=False), PromptScorer)


def test_answers_in_another_order_and_too_few_are_noticed():
    first, second = (answer(["A", name], [None, value]) for name, value in ((" b", -1), (" c", -2)))
    choices = [{**second, "index": 1}, {**first, "index": 0}]

    found = PromptScorer(lambda _route, _body: {"choices": choices}, "m").likelihoods(
        "A", [" b", " c"]
    )

    assert [one.logprob for one in found] == [-1, -2]
    with pytest.raises(EngineError, match="2 answers to 1"):
        PromptScorer(lambda _route, _body: {"choices": choices}, "m").likelihoods("A", [" b"])
