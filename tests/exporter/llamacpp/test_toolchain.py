from __future__ import annotations

from exporter.llamacpp.toolchain import scrubbed


def test_llama_cpp_sees_no_setting_of_the_callers_but_of_its_hardware():
    env = {"PATH": "/bin", "LLAMA_ARG_TOOLS": "all", "HF_TOKEN": "x", "GOMP_SPINCOUNT": "5"}

    assert scrubbed(env) == {"PATH": "/bin", "GOMP_SPINCOUNT": "5"}
