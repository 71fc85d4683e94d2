#!/bin/sh
# Writes constraints.txt: the newest versions that work together on Python 3.10 to 3.13 and have
# been out for a week, in which a bad release is usually found.
set -eu
new=$(mktemp)
before=$(python3 -c 'import datetime as d; print((d.datetime.now(d.timezone.utc) - d.timedelta(7)).strftime("%Y-%m-%dT%H:%M:%SZ"))')
trap 'rm -f "$new"' EXIT
{
    sed -n '/^#/p' constraints.txt
    echo 'torch==2.13.0' | uv pip compile --universal --exclude-newer "$before" --python-version 3.10 --extra export --extra eval --extra dev \
        --no-header --no-annotate pyproject.toml - |
        grep -vE '^(nvidia-|cuda-|triton|pip=|colorama|httpx2-jsfetch)'
} > "$new"
cp "$new" constraints.txt
