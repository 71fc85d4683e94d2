"""The settings of a view, and the meter of the context."""

from __future__ import annotations

import json

import pytest

from tests.runtime.conftest import PROMPTS
from tests.runtime.gateway.conftest import until
from tests.runtime.gateway.page.conftest import (
    CHAT,
    ask,
    base_of,
    choose,
    configure,
    endless_of,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.programs]

COW = PROMPTS[2]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


# a server that answers for one model until `finish()`, and lets all others wait
IN_TURN = """(first) => {
  const real = window.fetch;
  let goes = true;
  window.finish = () => { goes = false; };
  window.fetch = (url, options) => {
    if (!String(url).endsWith('/v1/chat/completions')) return real(url, options);
    if (JSON.parse(options.body).model !== first) {
      return new Promise((_, reject) => options.signal.addEventListener('abort', () => reject(options.signal.reason)));
    }
    const encoder = new TextEncoder();
    const body = new ReadableStream({
      async pull(controller) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        controller.enqueue(encoder.encode(goes ? 'data: {"choices": [{"delta": {"content": "a "}}]}\\n\\n' : 'data: [DONE]\\n\\n'));
        if (!goes) controller.close();
      },
    });
    return Promise.resolve(new Response(body));
  };
}"""  # noqa: E501 - JavaScript


def test_every_sampler_is_sent_as_it_is_set(opened):
    visit = opened()
    configure(
        visit, "chat", Temperature="0.5", Top_p="0.9", Top_k="40", Min_p="0.05",
        Repeat_penalty="1.1", Presence_penalty="0.5", Frequency_penalty="-0.25",
        Token_limit="12", Seed="7", Stop_at="END\n\\n\\n",
    )  # fmt: skip
    ask(visit, COW)
    (body,) = visit.asked(CHAT)
    sent = {name: value for name, value in body.items() if name not in ("model", "messages")}

    assert sent == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.1,
        "presence_penalty": 0.5, "frequency_penalty": -0.25,
        "max_tokens": 12, "seed": 7, "stop": ["END", "\n\n"],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    summary = visit.text("#chat .settings summary")
    assert "temperature 0.5, top p 0.9, top k 40" in summary
    visit["#chat .settings summary"].click()
    visit["#chat"].get_by_role("button", name="Model's own for all").click()
    assert visit.text("#chat .settings summary") == "Settings"
    ask(visit, COW)
    assert set(visit.asked(CHAT)[-1]) == {"model", "messages", "stream", "stream_options"}


def test_a_stop_text_ends_an_answer(opened, served):
    visit = opened()
    whole = served.says(base_of(served), COW)
    word = whole.split()[2]
    configure(visit, "chat", Temperature="0", Stop_at=word)

    assert ask(visit, COW) == whole.partition(word)[0].strip()


def test_a_schema_shapes_the_answer(opened):
    visit = opened()
    configure(visit, "chat", JSON_schema=json.dumps(SCHEMA), Token_limit="40", Temperature="0")
    answer = ask(visit, COW)

    assert isinstance(json.loads(answer)["n"], int)


@pytest.mark.parametrize(
    ("label", "value", "why"),
    [("JSON schema", "{", "is not JSON"), ("JSON schema", "[]", "is not an object"),
     ("Top p", "1.5", "Top p"), ("Top k", "0.5", "Top k"), ("Temperature", "-1", "Temperature")],
)  # fmt: skip
def test_what_cannot_be_used_is_said_and_nothing_is_sent(opened, label, value, why):
    visit = opened()
    configure(visit, "chat", **{label.replace(" ", "_"): value})
    visit["#message"].fill(COW)
    visit["#message"].press("Enter")

    assert why in visit.text("#chat .settings .error")
    assert visit["#chat"].get_by_label(label).evaluate("e => e === document.activeElement")
    assert visit["#message"].input_value() == COW
    assert visit.asked(CHAT) == []


def test_the_system_message_is_in_view_and_leads_to_its_field(opened):
    visit = opened()
    assert visit["[data-system]"].is_hidden()
    configure(visit, "chat", System_message="Be brief.")
    assert "Be brief." in visit.text("[data-system]")
    visit["[data-system]"].click()
    visit.page.keyboard.type("Always. ")

    assert "Always." in visit["#chat"].get_by_label("System message").input_value()
    assert "Always." in visit.text("[data-system]")


def test_the_meter_counts_the_answers_and_what_is_typed(opened, served):
    visit = opened()
    configure(visit, "chat", Temperature="0")
    ask(visit, COW)
    context = served.get(f"/v1/models/{base_of(served)}")[1]["status"]["context"]
    body = {"model": base_of(served), "messages": [{"role": "user", "content": COW}]}
    usage = served.ask(CHAT, {**body, "temperature": 0})[1]["usage"]["total_tokens"]
    meter = "#chat [data-context]"
    shown = f"{usage} of {context:,} tokens"
    assert until(lambda: shown in visit.text(meter))
    visit["#message"].fill("word " * 40)
    asked = {"model": base_of(served), "content": "word " * 40}
    typed = len(served.ask("/tokenize", asked)[1]["tokens"])
    assert until(lambda: f"{usage + typed} of" in visit.text(meter))
    assert f"{typed} of them typed" in visit.text(meter)
    visit["#message"].fill("word " * 9000)
    assert until(lambda: "too long for the context" in visit.text(meter))
    visit["#message"].fill("")
    visit["#chat [data-clear]"].click()
    assert until(visit[meter].is_hidden)


def test_typing_loads_no_model(opened, served):
    visit = opened()
    models = served.get("/v1/models")[1]
    status = {**models["data"][0], "status": {"value": "unloaded"}}
    visit.page.route("**/v1/models/*", lambda route: route.fulfill(json=status))
    visit["#message"].fill("Hello there")
    visit.page.wait_for_timeout(900)

    assert visit.asked("/tokenize") == []
    assert [r for r in visit.requests if "/v1/models/" in r.url]
    assert visit["#chat [data-context]"].is_hidden()


def test_a_column_that_waits_says_for_which_one(opened, served):
    visit = opened("compare")
    visit.page.evaluate(IN_TURN, base_of(served))
    visit["#prompt"].fill(COW)
    visit["#compare [data-send]"].click()
    waiting = "#compare .column:nth-child(2) .waiting"
    assert until(lambda: "Waiting for its turn: column 1 answers…" in visit.text(waiting))
    visit.page.evaluate("finish()")
    assert until(lambda: f"Waiting for {base_of(served)}:pirate…" in visit.text(waiting))
    visit["#compare [data-stop]"].click()
    visit["#compare [data-send]"].wait_for()


def test_compare_says_which_columns_take_turns(opened, served):
    visit = opened("compare")
    assert "Columns 1, 2 take turns" in visit.text("[data-turns]")
    choose(visit, ".column:nth-child(2)", endless_of(served))
    assert visit["[data-turns]"].is_hidden()
    choose(visit, ".column:nth-child(1)", endless_of(served))
    assert visit["[data-turns]"].is_hidden()
