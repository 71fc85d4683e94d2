"""Fills the Homebrew formula in: the version, the hash and the address of a release's sdist.

    python -m vendor.formula dist/decant_llm-VERSION.tar.gz > dist/decant.rb

Run by release.sh. The address is the one of the sdist among the files of the forge's release, under
`Source` in [project.urls] of pyproject.toml; without that, a line in capitals says what is missing.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
TEMPLATE = Path(__file__).with_name("decant.rb")
NAME = re.compile(r"decant_llm-(?P<version>\d[\w.+-]*)\.tar\.gz")
SOURCE = re.compile(r'^Source = "(?P<url>[^"]+?)/?"$', re.MULTILINE)
NO_SOURCE = "SOURCE-IN-PROJECT-URLS"
"""The address of a project that has none yet."""
FIELD = re.compile(r"@([A-Z\d]+)@")


def filled(sdist: Path, project: str) -> str:
    """The formula for an sdist. Raises ValueError for a file of another name.

    project: the text of pyproject.toml.
    """
    found = NAME.fullmatch(sdist.name)
    if found is None:
        raise ValueError(f"{sdist.name!r} is no sdist of decant")
    source = SOURCE.search(project.partition("[project.urls]")[2])
    home = source["url"] if source else NO_SOURCE
    version = found["version"]
    values = {
        "HOMEPAGE": home,
        "URL": f"{home}/releases/download/v{version}/{sdist.name}",
        "VERSION": version,
        "SHA256": hashlib.sha256(sdist.read_bytes()).hexdigest(),
    }
    text = TEMPLATE.read_text(encoding="utf-8").partition("\n")[2]  # without the first comment
    return FIELD.sub(lambda field: values[field[1]], text)


def main(argv: list[str]) -> int:
    """Print the formula for the sdist that is named; return the exit code."""
    project = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    try:
        print(filled(Path(argv[0]), project), end="")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
