#!/bin/sh
# Writes constraints.txt: the newest versions that work together on Python 3.10 to 3.13 and have
# been out for a week, in which a bad release is usually found; and packages.lock: the hashes of
# these versions' files, for `make setup`.
set -eu
new=$(mktemp -d)
before=$(python3 -c 'import datetime as d; print((d.datetime.now(d.timezone.utc) - d.timedelta(7)).strftime("%Y-%m-%dT%H:%M:%SZ"))')
trap 'rm -rf "$new"' EXIT
compile() {
    uv pip compile --universal --exclude-newer "$before" --python-version 3.10 --no-header --no-annotate "$@"
}
{
    sed -n '/^#/p' constraints.txt
    echo 'torch==2.13.0' | compile --extra export --extra eval --extra dev pyproject.toml - |
        grep -vE '^(nvidia-|cuda-|triton|pip=|colorama|httpx2-jsfetch)'
} > "$new/constraints.txt"
{
    sed -n '/^#/p' packages.lock
    grep -vE '^(#|torch=)' "$new/constraints.txt" | compile --no-deps --generate-hashes -
} > "$new/packages.lock"
cp "$new/constraints.txt" "$new/packages.lock" .
