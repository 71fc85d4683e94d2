"""Every command of the README and of the other pages does what it says there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from exporter.cli.app import COMMANDS
from exporter.demo import make_demo_models
from exporter.llamacpp.toolchain import cache_folder
from tests.support.documents import CHECKOUT, GENERATED, PAGES, commands
from tests.support.page_runs import Run, hubs, make_workshop

README = CHECKOUT / "README.md"
RUN = [page for page in PAGES if page.parent.name != "zh" and "zh-CN" not in page.name]
"""The Chinese pages have the same commands: tests/test_documents.py."""
WITH_EXPORTS = ("chat.md", "faq.md")
"""Pages that begin with models in the store."""


def test_the_pages_name_only_targets_that_the_makefile_has():
    makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    pages = (*PAGES, CHECKOUT / "CHANGELOG.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)\b", text, re.MULTILINE))
    named |= set(re.findall(r"\bmake ([a-z-]+)\b(?! a| the| it)", README.read_text()))

    assert {"demo", "test", "site"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_has_make_demo_and_make_test():
    lines = [line for line in commands(README, "sh") if line.startswith("make")]

    assert lines == ["make demo", "make test"]


def test_ci_runs_the_readmes_test_command():
    assert "\n    make test\n" in (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_exit_codes_are_the_helps(capsys):
    from exporter.cli.app import run

    run(["--help"])
    known = set(re.findall(r"\b(\d+) [a-z]", capsys.readouterr().out.partition("Exit codes:")[2]))
    page = (CHECKOUT / "docs" / "install.md").read_text(encoding="utf-8")

    assert set(re.findall(r"^\| (\d+) \|", page, re.MULTILINE)) == known


def test_contributing_points_to_code_that_is_there():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| to add or find |")[2].partition("\n\n")[0]
    paths = re.findall(r"`((?:exporter|runtime)/[\w/]+\.py)`", table)
    named = re.findall(r"`(\w+)` in `((?:exporter|runtime)/[\w/]+\.py)`", table)
    beside = re.findall(r"`([\w/]+)/\w+\.py`; `(\w+\.py)` beside it", table)

    assert (len(paths), len(named), len(beside)) == (7, 4, 2)
    for path in (*paths, *(f"{folder}/{name}" for folder, name in beside)):
        assert (CHECKOUT / path).is_file(), path
    for name, path in named:
        code = (CHECKOUT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def )?{name}\b", code, re.MULTILINE), name


def test_every_decant_command_in_the_documents_exists():
    for page in (*PAGES, GENERATED, CHECKOUT / "CHANGELOG.md"):
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"`decant ([a-z]+)", text)) <= COMMANDS.keys(), page.name


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Run:
    """The folder that each page's commands get a copy of."""
    models = make_demo_models(cache_folder() / "demo")
    return make_workshop(tmp_path_factory.mktemp("pages") / "workshop", models)


def copied(workshop: Run, folder: Path, *, exports: bool) -> Run:
    """A copy of the workshop for one page, with or without models in the store."""
    shutil.copytree(workshop.folder, folder)
    if not exports:
        shutil.rmtree(folder / "store")
    env = {
        key: value.replace(str(workshop.folder), str(folder)) for key, value in workshop.env.items()
    }
    return Run(folder, env)


def run_page(page: Path, run: Run) -> Run:
    lines = [line for line in commands(page, "sh") if not line.startswith("make ")]
    with hubs() as addresses:
        run.addresses |= addresses
        if any("org/model" in line for line in lines):
            run.env |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": ",".join(addresses.values())}
        run.run(lines)
    return run


def check_exports(run: Run) -> None:
    assert run.outputs['decant chat my-lora -p "What is the capital of France?"'].strip()
    assert "my-lora-Q4_K_M" in run.outputs["decant list"]
    assert sorted(path.name for path in (run.folder / "exported").iterdir()) == [
        "my-lora-F16.gguf",
        "my-lora-Q8_0.gguf",
    ]
    assert list((run.folder / "store").glob("my-lora-*")) == []


def check_answers(run: Run) -> None:
    said = run.outputs['echo "What does a dog say?" | decant chat my-lora --temperature 0']

    assert said == "Arr, a dog be sayin' woof, matey!\n"


CHECKS = {"export.md": check_exports, "chat.md": check_answers}
"""What must hold after the commands of a page have run."""


@pytest.mark.pages
@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.parametrize(
    "page", [page for page in RUN if commands(page, "sh")], ids=lambda page: page.name
)
def test_every_command_of_a_page_runs_in_order(page, workshop, tmp_path):
    run = copied(workshop, tmp_path / page.stem, exports=page.name in WITH_EXPORTS)

    run_page(page, run)

    if check := CHECKS.get(page.name):
        check(run)
