"""The rules the code keeps, read off its syntax."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.source_tree import CHECKOUT, FILES, Function, name, nodes, text, tree

TESTS = sorted((CHECKOUT / "tests").rglob("*.py"))
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "numpy",
    "sentencepiece",
    "gguf",
    "conversion",
    "safetensors",
}
RICH = {
    "exporter/cli/terminal_renderer.py",
    "runtime/terminal/columns.py",
    "runtime/terminal/markdown.py",
}
# where running processes is the job; everything else asks these
DOORS = {
    "exporter/convert/config_prefetch.py",
    "exporter/convert/converter_model.py",
    "exporter/convert/lazy_source.py",
    "exporter/convert/pretokenizer.py",
    "exporter/convert/to_gguf.py",
    "exporter/inputs/quantized/via_llamacpp.py",
}
SUBPROCESS = {
    "exporter/convert/config_prefetch.py",
    "exporter/inputs/template_process.py",
    "exporter/llamacpp/toolchain.py",
    "exporter/verify/logits_engine.py",
    "runtime/engine/adapters.py",
    "runtime/engine/llama_server.py",
    "runtime/terminal/clipboard.py",
    "runtime/launch/model_service.py",
    "runtime/launch/tool_process.py",
    "runtime/process/exit_with_parent.py",
    "runtime/cli/eval_tasks.py",
    "runtime/cli/from_folder.py",
    "runtime/process/kept_processes.py",
    "runtime/rpc/rpc_server.py",
    "vendor/bootstrap.py",
    "vendor/buildtools.py",
    "vendor/cmake.py",
    "vendor/host.py",
    "vendor/index.py",
    "vendor/probe.py",
    "vendor/process.py",
    "vendor/smoke.py",
}
WALL_CLOCK = {
    "exporter/forecast/rates.py",  # an hour, across processes
    "exporter/core/kept_values.py",  # an hour after a file was written
    "exporter/hub/probe_history.py",  # a week, across processes
    "exporter/hub/pull_plan.py",  # until a date that a server names
    "runtime/chat/session_files.py",  # when a conversation began
    "runtime/cli/eval_command.py",  # when an evaluation began
    "runtime/encoder_decoder/http.py",  # OpenAI's `created`
    "runtime/encoder_decoder/openai.py",
    "runtime/scoring/choices.py",
    "runtime/gateway/ollama/ollama_response.py",  # Ollama's `created_at`
    "runtime/gateway/ollama/ollama_routes.py",  # and `expires_at`
}
"""What asks for the time of day; it jumps, so that whatever lasts is measured otherwise."""
LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7
TEST_FILE = re.compile(
    r"^ *(from|import) tests\.(\S+\.)?test_\w+|^ *from tests\S* import test_\w+", re.MULTILINE
)
PARTICIPLE = re.compile(r"(?!embed$|feed$|need$).*ed|gone|left|said|sent|taken|told|written")
LAYERS = {
    "exporter": (
        "core", "llamacpp", "hub", "model_store", "stores", "inputs", "merge", "convert",
        "gguf_inputs", "quantize", "formats", "verify", "share", "forecast", "export",
        "ollama_folder", "calibrate", "extract_plan", "extract", "demo", "cli", "__main__",
    ),
    "runtime": (
        "process", "terminal", "rpc", "encoder_decoder", "engine", "scoring", "evaluation",
        ("chat", "gateway"), "launch", "cli",
    ),
}  # fmt: skip
"""What each package is made of, the lowest first: a part imports itself and those before it. Parts
in one entry import nothing of each other. `exporter/cli/app.py` names runtime's commands in
strings, and loads one when it is called."""


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    return set(imports(tree(path), module_of(path).rpartition(".")[0]))


def module_of(path: Path) -> str:
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path) for path in FILES}


def imports(node: ast.AST, package: str) -> Iterator[str]:
    """Every module a piece of code imports, relative ones resolved."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield (
                f"{package}.{child.module or ''}".rstrip(".") if child.level else child.module or ""
            )


@cache
def at_import_time(path: Path) -> set[str]:
    """What importing the file itself imports: nothing inside functions or TYPE_CHECKING."""
    body = [
        node
        for node in tree(path).body
        if not isinstance(node, Function | ast.ClassDef)
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    package = module_of(path).rpartition(".")[0]
    return {found for node in body for found in imports(node, package)}


def functions(path: Path) -> Iterator[Function]:
    return (node for node in nodes(path) if isinstance(node, Function))


def unreadable(path: Path) -> Iterator[str]:
    """A file's functions that are too long or take too much, and the file if it is too long."""
    if (length := len(text(path).splitlines())) > LINES:
        yield f"{name(path)}: {length} lines"
    for function in functions(path):
        if function.end_lineno - function.lineno >= FUNCTION_LINES:
            yield f"{name(path)}:{function.lineno} {function.name} is long"
        is_command = any("click" in ast.dump(decorator) for decorator in function.decorator_list)
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        named = [argument.arg for argument in arguments if argument.arg not in ("self", "report")]
        if not is_command and len(named) > PARAMETERS:
            yield f"{name(path)}:{function.lineno} {function.name} takes {len(named)}"


def test_files_and_functions_stay_readable():
    assert not [found for path in FILES for found in unreadable(path)]


def test_files_of_tests_stay_readable():
    long = {name(path) for path in TESTS if len(text(path).splitlines()) > LINES}

    assert not long


def test_no_test_file_imports_another():
    found = {name(path) for path in TESTS if TEST_FILE.search(text(path))}

    assert not found


def test_heavy_packages_are_imported_inside_verbs():
    found = [
        f"{name(path)}: {module}"
        for path in FILES
        for module in at_import_time(path)
        if module.partition(".")[0] in HEAVY
    ]

    assert not found


def test_the_exporter_never_imports_the_runtime():
    found = [
        f"{name(path)}: {module}"
        for path in FILES
        if name(path).startswith("exporter/")
        for module in imported(path)
        if module.partition(".")[0] == "runtime"
    ]

    assert not found


def layer(module: str) -> tuple[int, str] | None:
    """Where a module stands in LAYERS, and its part's name; None for a package's own root."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    if package not in LAYERS or not part:
        return None
    for number, entry in enumerate(LAYERS[package]):
        if part in ((entry,) if isinstance(entry, str) else entry):
            return number, part
    raise AssertionError(f"{module} has no place in LAYERS")


def ours(path: Path) -> Iterator[str]:
    """The modules of its own package that a file imports, in functions and for types too."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and not node.level:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module or "" for name in inside)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def above(path: Path) -> Iterator[str]:
    """The modules of a higher layer that a file imports."""
    place = layer(module_of(path))
    for other in ours(path) if place else ():
        if other.partition(".")[0] == module_of(path).partition(".")[0]:
            found = layer(other)
            if found and found[0] >= place[0] and found != place:
                yield other


def test_a_module_imports_only_its_own_layer_and_lower_ones():
    assert not [f"{name(path)} imports {other}" for path in FILES for other in above(path)]


def test_no_two_files_have_one_name():
    kept = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]
    for package in ("exporter", "runtime"):
        names = [path.name for path in kept if name(path).startswith(package)]
        assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


def test_the_recipe_imports_nothing_of_the_packages():
    """It is run before they are installed."""
    for path in (CHECKOUT / "vendor").glob("*.py"):
        found = {m for m in imported(path) if m.startswith(("exporter", "runtime"))}
        assert not found, name(path)


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("rich", RICH),
        ("subprocess", SUBPROCESS),
        ("conversion", DOORS),
    ],
)
def test_some_packages_have_few_doors(package, allowed):
    users = {
        name(path) for path in FILES if any(m.partition(".")[0] == package for m in imported(path))
    }

    assert users <= allowed


def test_whatever_lasts_is_measured_by_a_clock_that_does_not_jump():
    users = {
        name(path)
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "time.time_ns")
    }

    assert users == WALL_CLOCK


def test_exceptions_are_caught_broadly_in_one_place():
    broad = [
        name(path)
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    ]

    assert broad == ["exporter/cli/app.py"]


def test_coroutines_are_named_by_verbs():
    """A participle is the name of a value, and says nothing of what is waited for."""
    found = [
        f"{name(path)}: {node.name}"
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.AsyncFunctionDef)
        and PARTICIPLE.fullmatch(node.name.strip("_").partition("_")[0])
    ]

    assert not found


def test_no_two_modules_have_one_file_name():
    names = Counter(path.name for path in FILES)

    assert {name for name, count in names.items() if count > 1} == {"__init__.py", "__main__.py"}


def test_types_and_lazy_imports_make_no_cycle():
    """A module that is reached from itself, by imports in functions and for types too."""
    graph = {module_of(path): {*ours(path)} & MODULES for path in FILES}

    def reached(start: str) -> set[str]:
        found, todo = set[str](), [start]
        while todo:
            fresh = graph[todo.pop()] - found
            found |= fresh
            todo += fresh
        return found

    assert not {module for module in MODULES if module in reached(module)}


def test_there_is_no_import_cycle():
    modules = {module_of(path): at_import_time(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module in done or module not in modules:
            return
        for other in modules[module]:
            visit(other, (*above, module))
        done.add(module)

    for module in modules:
        visit(module, ())
