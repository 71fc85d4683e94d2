"""Verdicts on a tokenizer, used again for the very same one."""

from __future__ import annotations

import os

import pytest

from exporter.core.paths import tokenizers_folder
from exporter.inputs.adapter import open_adapter
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.merge.merge_plan import plan_merge
from exporter.merge.operations import WeightedAdapter
from exporter.verify import light
from exporter.verify.expected import expected_of
from exporter.verify.light import verify_light
from tests.support.tiny import make_adapter

pytestmark = [pytest.mark.llamacpp, pytest.mark.trained, pytest.mark.filterwarnings("ignore")]
ASKED = ("tokenizer", "special tokens", "chat template")


def checked(path, base, adapter, toolchain):
    plan = plan_merge(open_checkpoint(base), [WeightedAdapter(open_adapter(adapter))])
    with expected_of(plan, toolchain) as expected:
        return verify_light(path, expected, toolchain, again=False)


def verdicts(found):
    return [check for check in found.checks if check.name in ASKED]


@pytest.fixture
def compared(monkeypatch) -> list[str]:
    """The files whose tokens were compared."""
    compare, seen = light.check_tokens, []

    def counted(engine, facts, file, *rest):
        seen.append(file.path.name)
        return compare(engine, facts, file, *rest)

    monkeypatch.setattr(light, "check_tokens", counted)
    return seen


def test_another_adapters_file_is_checked_but_not_its_tokenizer_again(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path, compared
):
    other = make_adapter(tmp_path / "other", tiny_base, r=2)
    one = pour(tiny_base, tiny_adapter, tmp_path / "one.gguf", "Q8_0")
    two = pour(tiny_base, other, tmp_path / "two.gguf", "Q4_K_M")
    first, second = (
        checked(path, tiny_base, adapter, toolchain)
        for path, adapter in ((one, tiny_adapter), (two, other))
    )

    assert compared == ["one.gguf"]
    assert verdicts(first) == verdicts(second)
    assert [check.name for check in verdicts(second)] == list(ASKED)
    assert second.ok
    assert not checked(two, tiny_base, tiny_adapter, toolchain).ok  # the weights are the other's


def test_other_keys_are_checked_and_a_wrong_tokenizer_found(
    pour, toolchain, tiny_base, tiny_adapter, tmp_path, compared
):
    path = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "Q8_0")
    content = path.read_bytes()
    at = content.index(b"tokenizer.ggml.add_bos_token") + len(b"tokenizer.ggml.add_bos_token") + 4
    path.write_bytes(content[:at] + bytes([1 - content[at]]) + content[at + 1 :])
    compared.clear()
    found = checked(path, tiny_base, tiny_adapter, toolchain)

    assert compared == ["m.gguf"]
    assert not found.ok
    compared.clear()
    assert not checked(path, tiny_base, tiny_adapter, toolchain).ok
    assert compared == ["m.gguf"]  # a wrong one is not kept


def test_verify_itself_checks_everything(
    pour, verify, toolchain, tiny_base, tiny_adapter, tmp_path, compared
):
    path = pour(tiny_base, tiny_adapter, tmp_path / "m.gguf", "Q8_0")
    assert checked(path, tiny_base, tiny_adapter, toolchain).ok
    assert list(tokenizers_folder(os.environ).glob("*.checks"))
    compared.clear()
    verify(path, tiny_base, tiny_adapter).refuse()

    assert compared == ["m.gguf"]
