"""The rules the code keeps, read off its syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("exporter", "runtime", "vendor")
FILES = sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
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
RICH = {"exporter/cli/terminal_renderer.py", "runtime/terminal/markdown.py"}
# where running processes is the job; everything else asks these
DOORS = {
    f"exporter/{name}.py"
    for name in (
        "convert",
        "converter_model",
        "lazy_source",
        "hparams",
        "prequantized",
        "pretokenizer",
    )
}
SUBPROCESS = {
    "exporter/convert/config_prefetch.py",
    "exporter/inputs/template_process.py",
    "exporter/llamacpp/toolchain.py",
    "exporter/verify/logits_engine.py",
    "runtime/engine/adapters.py",
    "runtime/cli/from_folder.py",
    "runtime/engine/llama_server.py",
    "runtime/terminal/clipboard.py",
    "runtime/process/exit_with_parent.py",
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
Function = ast.FunctionDef | ast.AsyncFunctionDef
LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    return set(imports(tree(path), module_of(path).rpartition(".")[0]))


def module_of(path: Path) -> str:
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


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


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES
    for function in functions(path):
        assert function.end_lineno - function.lineno < FUNCTION_LINES, function.name
        is_command = any("click" in ast.dump(decorator) for decorator in function.decorator_list)
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        named = [argument.arg for argument in arguments if argument.arg not in ("self", "report")]
        assert is_command or len(named) <= PARAMETERS, function.name


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_packages_are_imported_inside_verbs(path):
    roots = {module.partition(".")[0] for module in at_import_time(path)}

    assert roots.isdisjoint(HEAVY)


def test_the_exporter_never_imports_the_runtime():
    for path in FILES:
        if name(path).startswith("exporter/"):
            found = [module for module in imported(path) if module.split(".")[0] == "runtime"]
            assert not found, name(path)


def test_core_imports_nothing_of_ours_but_core():
    for path in (CHECKOUT / "exporter" / "core").glob("*.py"):
        ours = {m for m in imported(path) if m.startswith(("exporter", "vendor"))}
        assert all(module.startswith("exporter.core") for module in ours), name(path)


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


def test_exceptions_are_caught_broadly_in_one_place():
    broad = [
        name(path)
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    ]

    assert broad == ["exporter/cli/app.py"]


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
