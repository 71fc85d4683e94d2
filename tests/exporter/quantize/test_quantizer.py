from __future__ import annotations

import pytest

from exporter.convert.to_gguf import convert
from exporter.core.errors import ToolchainError, UnsupportedError
from exporter.core.ggml_types import GGMLType
from exporter.inputs.open_checkpoint import open_checkpoint
from exporter.llamacpp.toolchain import run_tool
from exporter.merge.apply import MergedTensors
from exporter.merge.merge_plan import plan_merge
from exporter.quantize.quantizer import choose_types, parse_dry_run

PRINTED = """\
llama_model_loader: loaded meta data with 25 key-value pairs and 30 tensors
[   1/  30]                        output.weight - [ 256, 320, 1, 1], type =   bf16, \
size =     0.16 MiB ->     0.06 MiB (q6_K)
[   2/  30]                   output_norm.weight - [ 256, 1, 1, 1], type =    f32, \
size =    0.001 MiB
llama_model_quantize_impl: model size  =     3.69 MiB (16.01 BPW)
"""


def test_the_dry_runs_lines_are_read():
    assert parse_dry_run(PRINTED) == {
        "output.weight": GGMLType.by_name("Q6_K"),
        "output_norm.weight": GGMLType.by_name("F32"),
    }


@pytest.mark.llamacpp
@pytest.mark.trained
def test_a_quantization_that_needs_an_importance_matrix_is_refused(tiny_base, toolchain):
    """llama-quantize would refuse it too, and ggml alone would make rubbish."""
    tensors = MergedTensors(plan_merge(open_checkpoint(tiny_base)))
    conversion = convert(tensors, tiny_base, toolchain, model_name="x")

    with pytest.raises(UnsupportedError, match="IQ3_XS needs an importance matrix"):
        choose_types(conversion, "IQ3_XS", toolchain)


@pytest.mark.llamacpp
def test_a_tool_that_fails_is_shown_with_its_last_lines(toolchain, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model")

    with pytest.raises(ToolchainError, match=r"llama-quantize.*ended with 1"):
        run_tool(toolchain, "llama-quantize", ["--dry-run", str(tmp_path / "x.gguf"), "Q4_0"])
