"""Texts that act as code or markup if they are not escaped: on pages, in tables, on terminals."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

MARK = "window.hacked=1"
PAYLOADS = (
    f"<script>{MARK}</script>",
    f"</script><script>{MARK}</script>",
    f"</style><script>{MARK}</script>",
    f"</title><script>{MARK}</script>",
    f"</textarea><script>{MARK}</script>",
    f"<img src=x onerror={MARK}>",
    f"<svg onload={MARK}>",
    f"<svg><script>{MARK}</script></svg>",
    f"<svg><animate onbegin={MARK} attributeName=x dur=1s>",
    f"<body onload={MARK}>",
    f"<iframe srcdoc='<script>parent.{MARK}</script>'></iframe>",
    f"<iframe src=javascript:parent.{MARK}></iframe>",
    f"<a href='javascript:{MARK}'>x</a>",
    f"<details open ontoggle={MARK}>",
    f"<input autofocus onfocus={MARK}>",
    f"<video><source onerror={MARK}></video>",
    f"<object data='javascript:{MARK}'></object>",
    f"<math><mtext><img src=x onerror={MARK}></mtext></math>",
    f"<meta http-equiv=refresh content='0;url=javascript:{MARK}'>",
    "<base href=https://example.com/>",
    "<link rel=stylesheet href=https://example.com/x.css>",
    "<form action=https://example.com/><button>x</button></form>",
    f"<template><script>{MARK}</script></template>",
    f'" autofocus onfocus={MARK} x="',
    f"' onmouseover={MARK} x='",
    f'"><img src=x onerror={MARK}>',
    f"'><img src=x onerror={MARK}>",
    f"]]><script>{MARK}</script>",
    f"--><script>{MARK}</script>",
    "<!--",
    "<![CDATA[",
    f"{{{{ cycler.__init__.__globals__ }}}}{{% raw %}}<script>{MARK}</script>",
    "&lt;b&gt; &amp; &#60;script&#62;",
    f"<scr\x00ipt>{MARK}</scr\x00ipt>",
    f"\x1b]0;x\x07\x1b[31m\x9b31m<b onclick={MARK}>",
    f"\u202e<i onclick={MARK}>\u2066",
    f"\ud800<u onclick={MARK}>\udfff\ufffe\uffff",
    f"\u2028\u2029\x85\r\n<s onclick={MARK}>",
    r"$\frac{1}{2}$ $x_{$ \( $$",
    f"`<script>{MARK}</script>` | a | b\n# c\n- [x](javascript:{MARK}) ![y](http://example.com/y)",
    "_label",
    "url(#x);fill:red;background:url(//example.com)",
)  # fmt: skip
KEPT = {
    "win", "loss", "tie", "labels", "answers", "better", "worse", "no difference shown", "%", "",
}  # fmt: skip
"""Texts that have a meaning in a report, and must stay unchanged."""


def poisoned(value: Any, payload: str) -> Any:
    """The value with the payload put before every text, also before keys and names."""
    if is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: poisoned(getattr(value, f.name), payload) for f in fields(value)}
        return replace(value, **changes)
    if isinstance(value, str):
        return value if value in KEPT else f"{payload}{value}"
    if isinstance(value, dict):
        return {poisoned(k, payload): poisoned(v, payload) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(poisoned(part, payload) for part in value)
    return value
