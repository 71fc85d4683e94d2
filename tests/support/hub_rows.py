"""The fault table: each row causes one fault and measures its cost.

test_faults.py runs the rows; benchmarks/download.py runs them with users' limits.
"""

from __future__ import annotations

import resource
import shutil
import signal
import time
from dataclasses import replace

from exporter.core.errors import DecantError
from exporter.core.events import Event
from exporter.hub.access_token import TokenRule
from tests.support.hub_files import FakeFile
from tests.support.hub_stage import NAME, Result, Row, Stage, within


def kill_at_60_percent(stage: Stage) -> Result:
    stage.a.faults.rate = 8 << 20
    first = stage.start(stage.a)
    stage.wait_until_sent(0.6 * stage.size)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = stage.start(stage.b)
    second.communicate()
    return within(1.02, stage, done=second.returncode == 0)


def reset_every_3_mib(stage: Stage) -> Result:
    stage.fail(cut_after=3 << 20, cut_with="rst")
    stage.pull(stage.a)
    return within(1.02, stage)


def end_every_300_kb(stage: Stage) -> Result:
    stage.fail(cut_after=300_000)
    stage.pull(stage.a)
    return within(1.02, stage)


def thousand_reconnects(stage: Stage) -> Result:
    """Uses one connection: spread over several, a recursive retry would not become deep."""
    stage.fail(cut_after=stage.size // 2500)
    stage.limits = replace(stage.limits, connections=1)
    began = time.monotonic()

    def report(_: Event) -> None:
        if time.monotonic() - began > 60:
            raise TimeoutError("waits between reconnects")

    stage.pull(stage.a, report=report)
    gets = len(stage.a.gets(NAME))
    return Result("done after > 1000", f"done after {gets}", gets > 1000 and stage.is_right())


def stall(stage: Stage) -> Result:
    stage.fail(stall_after=1 << 20)
    began = time.monotonic()
    stage.pull()
    seconds, limit = time.monotonic() - began, stage.limits.stall_s
    result = within(1.05, stage, done=seconds <= limit + 5)
    return Result(
        f"<= {limit:.0f} + 5 s, {result.demanded}", f"{seconds:.1f} s, {result.measured}",
        result.holds,
    )  # fmt: skip


def trickle(stage: Stage) -> Result:
    stage.fail(rate=20_000)
    began = time.monotonic()
    pulled = stage.pull()
    seconds = time.monotonic() - began
    share = pulled.served[stage.b.name] / stage.size
    return Result(
        "B takes over", f"B sent {share:.0%}, {seconds:.1f} s", share > 0.9 and stage.is_right()
    )


def flipped_byte(stage: Stage) -> Result:
    stage.fail(flip=True)
    pulled = stage.pull()
    return Result("copy refused, B tried", f"right, from {len(pulled.served)}", stage.is_right())


def flipped_everywhere(stage: Stage) -> Result:
    stage.fail(flip=True)
    stage.b.faults.flip = True
    process = stage.start(stage.a, stage.b)
    _, stderr = process.communicate()
    holds = process.returncode == 6 and stage.is_empty() and "wrong hash" in stderr
    return Result(
        "exit > 0, nothing published",
        f"exit {process.returncode}, {'nothing' if stage.is_empty() else 'something'}",
        holds,
    )


def signed_url_expires(stage: Stage) -> Result:
    stage.fail(data_origin=stage.b.url)
    stage.b.faults.signed_uses = 3
    stage.pull(stage.a)
    resolved = len(stage.a.gets(NAME))
    result = within(1.02, stage, done=resolved > 1)
    return Result(result.demanded, f"{result.measured}, resolved {resolved} times", result.holds)


def busy(stage: Stage) -> Result:
    stage.fail(busy=4, api_status=[503])
    began = time.monotonic()
    stage.pull(stage.a)
    seconds = time.monotonic() - began
    return Result("waited, done", f"done in {seconds:.1f} s", seconds >= 1 and stage.is_right())


def ranges_ignored(stage: Stage) -> Result:
    stage.fail(no_ranges=True)
    stage.pull(stage.a)
    return Result("correct file", "correct" if stage.is_right() else "wrong", stage.is_right())


def ranges_ignored_by_one(stage: Stage) -> Result:
    stage.fail(no_ranges=True)
    stage.pull()
    good = stage.is_right() and stage.b.sent >= stage.size
    return Result("correct file, no mixing", "correct, from B" if good else "wrong", good)


def sent_to_hub(stage: Stage) -> Result:
    stage.fail(to_hub=True)
    stage.pull()
    return Result("next source", f"A sent {stage.a.sent} bytes", stage.is_right())


def commit_absent(stage: Stage) -> Result:
    stage.fail(no_commit=True)
    stage.pull(stage.a)
    used = any("/resolve/main/" in request.path for request in stage.a.requests)
    return Result("main, hash equal", "main" if used else "?", used and stage.is_right())


def commit_absent_main_moved(stage: Stage) -> Result:
    stage.fail(no_commit=True, other_version=True)
    served = stage.pull().served
    good = list(served) == [stage.b.name] and stage.is_right()
    return Result("main refused, hash unlike", f"bytes from {len(served)}, B", good)


def html_page(stage: Stage) -> Result:
    stage.fail(html_files=True)
    try:
        stage.pull(stage.a)
    except DecantError as error:
        early = stage.a.sent == 0 and stage.is_empty()
        return Result("stopped early, named", error.message[:60], early and error.exit_code == 6)
    return Result("stopped early, named", "accepted", holds=False)


def disk_too_small(stage: Stage) -> Result:
    huge = FakeFile(size=10**16, etag="a" * 64)
    stage.a.files = {**stage.a.files, "huge.safetensors": huge}
    process = stage.start(stage.a)
    process.communicate()
    good = process.returncode == 5 and stage.a.sent == 0 and not stage.a.gets()
    return Result(
        "error before the first byte", f"exit {process.returncode}, {stage.a.sent} bytes sent", good
    )


def disk_fills(stage: Stage) -> Result:
    limit = stage.size // 2
    stage.a.faults.rate = 8 << 20
    began = time.monotonic()
    process = stage.start(
        stage.a,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    process.communicate()
    seconds = time.monotonic() - began
    sent = stage.a.sent
    second = stage.start(stage.b)
    second.communicate()
    good = process.returncode == 5 and second.returncode == 0 and sent < 0.8 * stage.size
    result = within(1.05, stage, done=good)
    return Result(
        "stop at once, part kept", f"exit 5 in {seconds:.1f} s, then {result.measured}",
        result.holds,
    )  # fmt: skip


def two_processes(stage: Stage) -> Result:
    stage.a.faults.rate = 8 << 20
    both = [stage.start(stage.a), stage.start(stage.a)]
    said = "".join(process.communicate()[1] for process in both)
    done = all(process.returncode == 0 for process in both) and "another process" in said
    return within(1.01, stage, done=done, extra=", one said that it waits" if done else "")


def interrupted(stage: Stage) -> Result:
    stage.a.faults.rate = 1 << 20
    process = stage.start(stage.a)
    stage.wait_until_sent(stage.size // 8)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    seconds = time.monotonic() - began
    told = "are kept; the same command resumes from there" in stderr
    good = seconds < 1 and process.returncode == 130 and told
    return Result("< 1 s, says what is kept", f"{seconds:.2f} s, exit {process.returncode}", good)


def token_stays(stage: Stage) -> Result:
    stage.fail(data_origin=stage.b.url)
    stage.pull(stage.a, rule=TokenRule("hf_secret"))
    seen = [request for hub in (stage.a, stage.b) for request in hub.requests]
    untrusted = [request for request in seen if request.authorization]
    shutil.rmtree(stage.cache)
    trusted = TokenRule("hf_secret", (f"127.0.0.1:{stage.a.server.server_port}",))
    stage.pull(stage.a, rule=trusted)
    at_a = [request for request in stage.a.requests if request.authorization]
    at_b = [request for request in stage.b.requests if request.authorization]
    good = not untrusted and bool(at_a) and not at_b
    return Result(
        "0 seen there",
        f"{len(untrusted)} untrusted, {len(at_b)} after redirect, {len(at_a)} trusted",
        good,
    )


BAD_NAMES = ("../x", "/abs", "C:\\x", "a\0b", "n" * 300, "d/../../x")


def bad_names(stage: Stage) -> Result:
    refused = 0
    for name in BAD_NAMES:
        stage.a.files = {name: FakeFile(b"x"), "config.json": FakeFile(b"{}", is_lfs=False)}
        try:
            stage.pull(stage.a)
        except DecantError as error:
            refused += "names a file" in error.message
    written = [path for path in stage.folder.rglob("*") if path.is_file()]
    good = refused == len(BAD_NAMES) and not written and not stage.a.gets()
    return Result(
        "refused, nothing written", f"{refused} refused, {len(written)} files written", good
    )


def link_in_the_way(stage: Stage) -> Result:
    outside = stage.folder / "outside"
    outside.mkdir()
    stage.a.files = {name: FakeFile(b"{}") for name in ("file.json", "folder/x.json")}
    refused = 0
    for name in ("file.json", "folder"):
        here = stage.folder / f"in-{name}"
        here.mkdir()
        (here / name).symlink_to(outside)
        try:
            stage.pull(stage.a, local_dir=here)
        except DecantError as error:
            refused += "is a link to another place" in error.message
    written = [path for path in stage.folder.rglob("*") if path.is_file()]
    good = refused == 2 and not written
    return Result(
        "refused, nothing written", f"{refused} refused, {len(written)} files written", good
    )


def offline(stage: Stage) -> Result:
    stage.pull(stage.a)
    before = len(stage.a.requests)
    stage.pull(stage.a, offline=True)
    asked = len(stage.a.requests) - before
    return Result("0 requests", f"{asked} requests", asked == 0)


def eight_connections(stage: Stage) -> Result:
    stage.a.faults.rate = 1 << 20
    seconds = []
    for connections in (1, 8):
        stage.cache = stage.folder / f"hub{connections}"
        stage.limits = replace(stage.limits, connections=connections)
        began = time.monotonic()
        stage.pull(stage.a)
        seconds.append(time.monotonic() - began)
    factor = seconds[0] / seconds[1]
    return Result(">= 6 x", f"{factor:.1f} x ({seconds[0]:.1f} s, {seconds[1]:.1f} s)", factor >= 6)


def one_connection(refusal: int | str) -> Row:
    """A row: a mirror that allows one connection, against one connection to a free mirror."""

    def row(stage: Stage) -> Result:
        rate = 4 << 20
        stage.fail(rate=rate)
        seconds = []
        for limits in (replace(stage.limits, connections=1), stage.limits):
            stage.cache = stage.folder / f"hub{len(seconds)}"
            began = time.monotonic()
            stage.pull(stage.a, limits=limits)
            seconds.append(time.monotonic() - began)
            stage.fail(rate=rate, most=1, refusal=refusal)
        ratio = seconds[0] / seconds[1]
        refused = len(stage.a.refused) / max(1, seconds[1] / 60)
        return Result(
            ">= 0.9 x, <= 5 refused a minute",
            f"{ratio:.2f} x of one connection, {refused:.0f} refused",
            ratio >= 0.9 and refused <= 5 and stage.is_right(),
        )

    return row


ROWS: dict[str, Row] = {
    "kill -9 at 60 %, again from B": kill_at_60_percent,
    "RST every 3 MiB": reset_every_3_mib,
    "FIN every 300 kB": end_every_300_kb,
    "> 1,000 reconnects": thousand_reconnects,
    "A stalls mid-file": stall,
    "A trickles at 20 kB/s": trickle,
    "one byte flipped on A": flipped_byte,
    "one byte flipped everywhere": flipped_everywhere,
    "signed URL expires (403)": signed_url_expires,
    "429 with Retry-After, 503 on the API": busy,
    "Range ignored, one endpoint": ranges_ignored,
    "Range ignored by A": ranges_ignored_by_one,
    "308 to the hub": sent_to_hub,
    "pinned commit absent": commit_absent,
    "pinned commit absent, main moved": commit_absent_main_moved,
    "HTML page in place of a file": html_page,
    "disk too small": disk_too_small,
    "disk fills mid-way": disk_fills,
    "two processes": two_processes,
    "Ctrl-C": interrupted,
    "token: untrusted, redirect, http": token_stays,
    "names that leave their folder": bad_names,
    "symlink in the way": link_in_the_way,
    "offline, complete cache": offline,
    "1 MiB/s a connection, 1 vs 8": eight_connections,
}
MIRRORS: dict[str, Row] = {
    f"one connection allowed, {refusal} for more": one_connection(refusal)
    for refusal in (403, 429, 503, "rst", "html")
}  # test_mirrors.py tests the same with small files
