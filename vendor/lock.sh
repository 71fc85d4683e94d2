#!/bin/sh
# Writes constraints.txt: the newest versions that work together on Python 3.10 to 3.13.
set -eu
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
    sed -n '/^#/p' constraints.txt
    echo 'torch==2.13.0' | uv pip compile --universal --python-version 3.10 --extra export --extra dev \
        --no-header --no-annotate pyproject.toml - |
        grep -vE '^(nvidia-|cuda-|triton|pip=|colorama|httpx2-jsfetch)'
} > "$new"
cp "$new" constraints.txt
