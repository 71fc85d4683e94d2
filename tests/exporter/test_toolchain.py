from __future__ import annotations

from exporter.toolchain import SPINS, scrubbed


def test_llama_cpp_sees_no_setting_of_the_callers_but_of_its_hardware():
    env = {"PATH": "/bin", "LLAMA_ARG_TOOLS": "all", "HF_TOKEN": "x", "CUDA_VISIBLE_DEVICES": "1"}

    assert scrubbed(env) == {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"} | SPINS


def test_how_long_threads_spin_is_decants_unless_the_caller_says():
    for mine in ({"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "active"}):
        assert scrubbed(mine) == mine
