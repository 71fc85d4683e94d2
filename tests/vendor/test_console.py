from __future__ import annotations

import io

from vendor.console import Console
from vendor.report import BuildEvent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def compile_steps(out: io.StringIO) -> str:
    console = Console(out)
    for done in range(1, 201):
        console(BuildEvent("compile", "compiling", done, 200))
    console(BuildEvent("done", "ready"))
    console.close()
    return out.getvalue()


def test_off_a_terminal_a_line_comes_every_five_percent():
    lines = compile_steps(io.StringIO()).splitlines()
    assert lines[0] == "  compile  compiling    0 %  1/200"
    assert lines[1] == "  compile  compiling    5 %  10/200"
    assert lines[-2] == "  compile  compiling  100 %  200/200"
    assert lines[-1] == "     done  ready"
    assert len(lines) == 22


def test_on_a_terminal_one_line_is_written_over():
    text = compile_steps(Terminal())
    assert text.count("\n") == 2
    assert text.endswith("\r\x1b[K     done  ready\n")
    assert "100 %  200/200\n" in text


def test_bytes_are_shown_in_mebibytes():
    out = io.StringIO()
    Console(out)(BuildEvent("fetch", "fetching", 1 << 20, 4 << 20))
    assert out.getvalue() == "    fetch  fetching   25 %  1.0/4.0 MiB\n"
