"""Special tokens' names in the data stay text."""

from __future__ import annotations

from runtime.evaluation.plain_data import PlainData

DATA = PlainData(("<|im_end|>", "<|im|>", "</s>"))


def test_a_conversation_without_such_a_name_is_not_touched():
    assert not DATA.is_named_in([{"role": "user", "content": "a < b </p> <|im"}])
    assert not PlainData(()).is_named_in([{"role": "user", "content": "</s>"}])


def test_names_in_texts_and_parts_are_marked_and_come_back_as_plain_parts():
    messages = [
        {"role": "user", "content": "ends</s>"},
        {"role": "user", "content": [{"type": "text", "text": "x<|im_end|><|im|>y"}]},
    ]
    assert DATA.is_named_in(messages)

    marked = DATA.marked(messages)
    prompt = f"<s>{marked[0]['content']}</s>{marked[1]['content'][0]['text']}<|im_end|>"

    assert marked[0]["role"] == "user"
    assert DATA.parts(prompt) == [
        "<s>ends", {"plain": "</s>"}, "</s>x", {"plain": "<|im_end|>"}, {"plain": "<|im|>"},
        "y<|im_end|>",
    ]  # fmt: skip
