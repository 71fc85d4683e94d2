"""The parts of a chat template, written as the Go template of an Ollama Modelfile.

No white space is trimmed: the model sees exactly the text between the actions. Ollama reads two
things from the template: whether a model takes tools (`.Tools`), and the text that calls begin
with, which is the first text inside the first `if .ToolCalls` (tools/template.go of
https://github.com/ollama/ollama).
"""

from __future__ import annotations

from exporter.inputs.template_tools import SYSTEM, TOOLS, ToolTurns
from exporter.inputs.template_turns import Turns

NEXT = "{{ $next := index (slice $.Messages $i) 1 }}"


def go_template(turns: Turns) -> str:
    """The Go template over Ollama's .Messages, with alternating questions and answers.

    A final answer stays open, so that the model continues it.
    """
    system_at_end = turns.system if turns.system_is_last else None
    in_last = if_("and $last $.System", around(system_at_end, "$.System")) if system_at_end else ""
    question = f"{in_last}{{{{ .Content }}}}" + if_(
        "$last", switched(turns.closing, turns.closing_off), turns.to_answer
    )
    thoughts = ""
    if turns.closing_off is not None:
        thoughts = if_("and $last .Thinking", around(turns.thoughts, ".Thinking"))
    answer = thoughts + (
        answer_with_calls(turns, turns.tools)
        if turns.tools
        else "{{ .Content }}" + if_("not $last", turns.to_question)
    )
    tool = if_('eq .Role "tool"', result(turns, turns.tools)) if turns.tools else ""
    return (
        f"{opening(turns)}{{{{ range $i, $_ := .Messages }}}}"
        "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        + if_('eq .Role "user"', question)
        + if_('eq .Role "assistant"', answer)
        + tool
        + "{{ end }}"
    )


def opening(turns: Turns) -> str:
    """The text up to the first question."""
    plain = turns.opening
    if turns.system and not turns.system_is_last:
        plain = if_(".System", around(turns.system, ".System"), turns.opening)
    if not turns.tools:
        return plain
    offered = pieces(turns.tools.opening, turns.tools)
    if turns.tools.opening_with_system:
        offered = if_(".System", pieces(turns.tools.opening_with_system, turns.tools), offered)
    return if_(".Tools", offered, plain)


def pieces(texts: tuple[str, ...], tools: ToolTurns) -> str:
    """An opening that holds the tools, and perhaps the system message."""
    each = "{{ json .Function }}" if tools.is_function_only else "{{ json . }}"
    listed = "{{ range $j, $_ := .Tools }}" + if_("$j", tools.between_tools) + each + "{{ end }}"
    return "".join({SYSTEM: "{{ .System }}", TOOLS: listed}.get(text, text) for text in texts)


def answer_with_calls(turns: Turns, tools: ToolTurns) -> str:
    """An answer's text, its calls, and the text before the next message.

    A variable holds the calls where Ollama must not find them first.
    """
    content = "{{ .Content }}"
    if tools.after_content is None:
        content = if_("not $calls", content)
    elif tools.after_content:
        content += if_("and .Content $calls", tools.after_content)
    call = f"{{{{ .Function.Name }}}}{tools.to_arguments}{{{{ json .Function.Arguments }}}}"
    if tools.between_calls is None:
        call = if_("not $j", call)
    else:
        call = if_("$j", tools.between_calls) + call
    calls = tools.call + "{{ range $j, $_ := .ToolCalls }}" + call + "{{ end }}"
    after = NEXT + if_('eq $next.Role "tool"', tools.to_result, turns.to_question)
    return (
        "{{ $calls := .ToolCalls }}" + content + if_(".ToolCalls", calls) + if_("not $last", after)
    )


def result(turns: Turns, tools: ToolTurns) -> str:
    """A tool's result and the text after it."""
    off = tools.closing_off if turns.closing_off is not None else None
    following = if_(
        'eq $next.Role "tool"',
        tools.between_results,
        if_('eq $next.Role "user"', tools.to_question, tools.to_answer),
    )
    content = "{{ json .Content }}" if tools.result_is_json else "{{ .Content }}"
    return content + if_("$last", switched(tools.closing, off), NEXT + following)


def switched(closing: str, closing_off: str | None) -> str:
    """The text after the last message, by Ollama's switch for thinking."""
    if closing_off is None:
        return closing
    return if_("and $.IsThinkSet (not $.Think)", closing_off, closing)


def around(texts: tuple[str, str], field: str) -> str:
    return f"{texts[0]}{{{{ {field} }}}}{texts[1]}"


def if_(condition: str, then: str, otherwise: str = "") -> str:
    """An `if` action; empty if both branches are."""
    if not then and not otherwise:
        return ""
    other = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{then}{other}{{{{ end }}}}"
