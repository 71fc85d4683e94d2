"""`--to vllm`: vLLM itself serves the folder, and answers as transformers and peft do.

What decant refuses, vLLM cannot serve: it is asked to load those adapters as they were saved.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from exporter.cli.app import run
from exporter.core.errors import UnsupportedError
from exporter.demo import make_demo_models
from exporter.demo.train import load_tokenizer, render
from exporter.formats.vllm import LORAS_MAX, RANKS
from exporter.llamacpp.toolchain import cache_folder
from exporter.merge.result_files import DEFAULT, SETTINGS, TEMPLATE, templates_in
from tests.runtime.conftest import PROMPTS, train_liar
from tests.support.mlx_models import mlx_twin
from tests.support.vllm_adapters import (
    REFUSED,
    SERVED,
    Oracle,
    adapters_of,
    scaling_activations,
    with_two_words_more,
)
from tests.support.vllm_environment import lacking, vllm_environment
from tests.support.vllm_folders import exported
from tests.support.vllm_server import VllmServer, vllm_serving

pytestmark = [
    pytest.mark.vllm, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900),
    pytest.mark.skipif(lacking() is not None, reason=f"this processor lacks {lacking()}"),
]  # fmt: skip

Asked = TypeVar("Asked")
CLOSE = 1e-3  # nats: two orders of the same float32 sums
HALF = 0.5
TRAINED = ("pirate", "liar", "half")
BY_NAME = (*TRAINED, "mlx", *SERVED)
FAILING = {
    **{name: words for name, (_, words) in REFUSED.items()},
    "ia3": "Missing required configuration fields",
    "words": "lm_head.weight is unsupported",
}
"""What decant refuses, with words of vLLM's refusal."""


@dataclass(frozen=True)
class Models:
    """The demo's base, and adapters as trainers saved them."""

    base: Path
    untold: Path
    """The base without its chat template, which an adapter brings."""
    served: dict[str, Path]
    refused: dict[str, Path]

    @property
    def oracle(self) -> Oracle:
        return Oracle(self.base)

    def trained(self, name: str | None, asked: Asked) -> tuple[Path | None, Asked, float]:
        """The folder that PEFT reads for a served adapter, what it is asked, and its scale."""
        if name is None:
            return None, asked, 1.0
        same = {"half": "pirate", "mlx": "pirate"}.get(name, name)
        return self.served[same], asked, HALF if name == "half" else 1.0


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Models:
    demo = make_demo_models(cache_folder() / "demo")
    root: Path = tmp_path_factory.mktemp("adapters")
    train_liar(root / "liar", demo.base)
    template = without_template(demo.base, root / "base")
    shutil.copytree(demo.adapter, root / "pirate")
    (root / "pirate" / TEMPLATE).write_text(template)
    served = {
        "pirate": root / "pirate", "liar": root / "liar", "half": demo.adapter,
        "mlx": mlx_twin(root / "mlx", demo.adapter), **adapters_of(SERVED, root, demo.base),
    }  # fmt: skip
    settings = {name: given for name, (given, _) in REFUSED.items()}
    refused = adapters_of(settings, root, demo.base) | {
        "ia3": scaling_activations(root / "ia3", demo.base),
        "words": with_two_words_more(root / "words", demo.base),
    }
    return Models(demo.base, root / "base", served, refused)


def without_template(base: Path, folder: Path) -> str:
    """A copy of the base without its chat template, which is returned."""
    text = templates_in(base)[DEFAULT]
    shutil.copytree(base, folder)
    (folder / TEMPLATE).unlink(missing_ok=True)
    settings = json.loads((folder / SETTINGS).read_text())
    settings.pop("chat_template", None)
    (folder / SETTINGS).write_text(json.dumps(settings))
    assert not templates_in(folder)
    return text


def exported_by_command(root: Path, base: Path, adapters: dict[str, Path]) -> Path:
    first, *others = (
        f"{name}={folder}" + (f":{HALF}" if name == "half" else "")
        for name, folder in adapters.items()
    )
    argv = ["export", first, *(word for one in others for word in ("--adapter", one))]
    argv += ["--base", str(base), "--to", "vllm", "-o", str(root / "out"), "--quiet"]
    assert run(argv) == 0
    return root / "out"


@pytest.fixture(scope="module")
def few(models, tmp_path_factory) -> Iterator[VllmServer]:
    """vLLM over the folder of three adapters, as its script starts it."""
    root: Path = tmp_path_factory.mktemp("few")
    folder = exported_by_command(root, models.base, {one: models.served[one] for one in TRAINED})
    with vllm_serving(folder, root / "log") as found:
        yield found


@pytest.fixture(scope="module")
def server(models, tmp_path_factory) -> Iterator[VllmServer]:
    """vLLM over the folder of all adapters, more than a batch holds; others may be loaded.

    The base has no chat template, one adapter has.
    """
    root: Path = tmp_path_factory.mktemp("many")
    folder = exported_by_command(root, models.untold, models.served)
    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with vllm_serving(folder, root / "log", "--enforce-eager", env=env) as found:
        yield found


@pytest.fixture(scope="module")
def ids(models) -> list[int]:
    """A conversation that the base and the fine-tunes continue differently."""
    tokenizer = load_tokenizer(models.base)
    answer = tokenizer(" Arr, the capital of France be Paris, matey!", add_special_tokens=False)
    return [*render(tokenizer, PROMPTS[0]), *answer["input_ids"]]


# A few adapters.


def test_the_base_and_its_adapters_are_listed(few):
    assert few.models() == {"base": None} | {f"base:{name}": "base" for name in TRAINED}


@pytest.mark.parametrize("name", [None, *TRAINED])
def test_greedy_answers_are_those_of_transformers_and_peft(name, few, models):
    answers = [few.says(f"base:{name}" if name else "base", prompt) for prompt in PROMPTS]

    assert answers == models.oracle.says(*models.trained(name, PROMPTS))
    assert all(answers)


def test_answers_of_one_batch_are_those_of_each_alone(few):
    """The base's, too: on CPUs vLLM applies the adapter in its last place to it (#48421)."""
    asked = [(name, prompt) for prompt in PROMPTS for name in few.models()]
    alone = [few.says(*one) for one in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda one: few.says(*one), asked))

    assert together == alone
    assert len({alone[asked.index((name, PROMPTS[0]))] for name in ("base", "base:liar")}) == 2


def test_the_bases_likelihoods_are_those_of_transformers(few, models, ids):
    assert distance(few.likelihoods("base", ids), models.oracle.likelihoods(None, ids)) <= CLOSE


# Adapters of all kinds.


def test_conversations_have_the_template_that_an_adapter_brought(server, models):
    answers = [server.says("base:mlx", prompt) for prompt in PROMPTS]

    assert answers == models.oracle.says(*models.trained("mlx", PROMPTS))


@pytest.mark.parametrize("name", BY_NAME)
def test_likelihoods_are_those_of_transformers_and_peft(name, server, models, ids):
    expected = models.oracle.likelihoods(*models.trained(name, ids))

    assert distance(server.likelihoods(f"base:{name}", ids), expected) <= CLOSE
    assert distance(expected, models.oracle.likelihoods(None, ids)) > 100 * CLOSE


def distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", FAILING)
def test_what_decant_refuses_vllm_refuses_or_computes_wrongly(name, server, models, ids, tmp_path):
    folder = models.refused[name]
    with pytest.raises(UnsupportedError) as refused:
        exported(tmp_path / "out", folder, base=str(models.base))
    status, said = server.load(f"as-saved:{name}", folder)

    assert status >= 400
    assert FAILING[name] in said
    assert refused.value.hint
    assert server.says("base:pirate", PROMPTS[0]).startswith("Arr")  # it goes on serving


def test_ranks_are_those_that_vllm_takes():
    python = vllm_environment() / "bin" / "python"
    code = "import typing, vllm.config.lora as of; print(*typing.get_args(of.MaxLoRARanks))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)

    assert set(RANKS) <= set(map(int, done.stdout.split()))
    assert RANKS[-1] == max(map(int, done.stdout.split()))


# While it runs.


def test_an_adapter_of_a_later_export_is_loaded_and_unloaded_while_it_runs(
    server, models, ids, tmp_path
):
    later = exported(tmp_path / "out", models.served["patterns"], base=str(models.base))
    status, said = server.load("base:later", later / "adapters" / "patterns")

    assert status == 200, said
    assert server.likelihoods("base:later", ids) == server.likelihoods("base:patterns", ids)
    assert server.unload("base:later") == 200
    assert "base:later" not in server.models()


def test_more_adapters_than_a_batch_holds_answer_in_turn(server, models, ids):
    """Others leave their places for them, and come back."""
    before = {name: server.likelihoods(f"base:{name}", ids) for name in BY_NAME}
    after = {name: server.likelihoods(f"base:{name}", ids) for name in reversed(BY_NAME)}

    assert len(BY_NAME) > LORAS_MAX
    assert before == after
