"""What fits, and what is said when it does not; reckoned as llama.cpp allocates."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from exporter.core.errors import SpaceError
from exporter.core.ggml_types import GGMLType
from exporter.core.gguf import Array, GGUFFile, TensorInfo, read_gguf
from exporter.core.machine import available_nbytes, cores, memory_nbytes, physical_cores
from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.engine.llama_server import Server, ServerSpec
from runtime.engine.memory_fit import FitOptions, fit, halves
from runtime.engine.memory_need import LAYERS_KEPT, cache_values, reckon
from tests.support.gguf_headers import llama
from tests.support.tiny import make_base

GB = 1_000_000_000


def fitted(model, free, options=FitOptions(), **changes):  # noqa: B008 - frozen
    return fit(model, [], options, **({"free": free, "cores": 4, "backend": "cpu"} | changes))


def test_a_laptop_with_room_gets_the_default_context(tmp_path):
    found = fitted(llama(tmp_path / "m.gguf"), 16 * GB)

    assert (found.context, found.cache_type, found.threads) == (8192, "f16", 4)
    assert found.need.cache == 8192 * 131072
    assert found.prompt_cache > 0


def test_a_model_of_short_context_gets_no_more_than_it_was_trained_with(tmp_path):
    model = llama(tmp_path / "m.gguf", **{"llama.context_length": 2048})

    assert fitted(model, 16 * GB).context == 2048
    assert fitted(model, 16 * GB, FitOptions(context=5000)).context == 2048


def test_where_memory_is_short_the_cache_is_smaller_first_and_then_the_context(tmp_path):
    model = llama(tmp_path / "m.gguf")
    whole = reckon(model, 8192, "f16", 0).total
    tight, tighter = (
        fitted(model, int(whole / 0.9) - 10**8),
        fitted(model, int(whole / 0.9) - 6 * 10**8),
    )

    assert (tight.context, tight.cache_type) == (8192, "q8_0")
    assert tighter.context < 8192
    assert tighter.need.total <= 0.9 * tighter.free


def test_what_cannot_fit_is_refused_with_sizes_and_with_what_would(tmp_path):
    with pytest.raises(SpaceError) as caught:
        fitted(llama(tmp_path / "m.gguf"), 4 * GB)

    assert re.search(r"needs [\d.]+ GB \([\d.]+ GB weights", caught.value.message)
    assert "4.00 GB of memory are free" in caught.value.message
    assert "-q IQ2_XXS" in caught.value.hint
    assert fitted(llama(tmp_path / "m.gguf"), 4 * GB, FitOptions(force=True)).context == 8192


def test_a_context_that_was_asked_for_is_not_made_smaller_silently(tmp_path):
    with pytest.raises(SpaceError) as caught:
        fitted(llama(tmp_path / "m.gguf"), 8 * GB, FitOptions(context=65536))

    assert caught.value.hint.startswith("--ctx ")
    context = int(caught.value.hint.split()[1])
    assert (
        fitted(llama(tmp_path / "m.gguf"), 8 * GB, FitOptions(context=context)).context == context
    )


def test_a_gpu_is_left_to_llamacpp(tmp_path):
    assert fitted(llama(tmp_path / "m.gguf"), GB, backend="cuda").context == 8192


def test_what_shares_its_memory_with_the_processor_is_not(tmp_path):
    with pytest.raises(SpaceError):
        fitted(llama(tmp_path / "m.gguf"), 4 * GB, backend="metal")


def test_layers_of_their_own_sizes_are_counted_one_by_one(tmp_path):
    heads = Array(32, tuple([8] * 16 + [0] * 16))
    half = llama(tmp_path / "m.gguf", **{"llama.attention.head_count_kv": heads})

    assert cache_values(half, 10) * 2 == cache_values(llama(tmp_path / "m.gguf"), 10)


def test_texts_that_are_read_whole_need_room_for_all_their_tokens_at_once(tmp_path):
    model = llama(tmp_path / "m.gguf")
    whole = fitted(model, 40 * GB, FitOptions(whole_texts=True))
    by_pieces = fitted(model, 40 * GB)

    assert (whole.batch, by_pieces.batch) == (8192, 512)
    assert whole.need.work > 10 * by_pieces.need.work
    assert fitted(model, 9 * GB, FitOptions(whole_texts=True)).batch < 8192


def test_sums_are_exact_where_there_is_room_for_all_scores(tmp_path):
    """32 heads, 512 tokens and 8192 of context: half a GB in float32."""
    model = llama(tmp_path / "m.gguf")
    plain = fitted(model, 40 * GB).need.total
    exact = fitted(model, 40 * GB, FitOptions(exact=True))

    assert exact.is_exact
    assert exact.need.total == plain + 32 * 512 * 8192 * 4
    assert not fitted(model, int(plain / 0.9) + 10**8, FitOptions(exact=True)).is_exact
    assert not fitted(model, 40 * GB, FitOptions(exact=True), backend="cuda").is_exact


def test_a_wide_cache_has_32_bits_where_there_is_room_and_16_before_the_context_is_cut(tmp_path):
    model = llama(tmp_path / "m.gguf")
    whole = reckon(model, 8192, "f32", 0).total
    roomy = fitted(model, 40 * GB, FitOptions(wide_cache=True))
    tight = fitted(model, int(whole / 0.9) - 10**8, FitOptions(wide_cache=True))

    assert (roomy.cache_type, roomy.is_narrow, roomy.warnings()) == ("f32", False, [])
    assert roomy.need.cache == 2 * fitted(model, 40 * GB).need.cache
    assert (tight.context, tight.cache_type, tight.is_narrow) == (8192, "f16", True)
    assert "f16" in tight.warnings()[0]


def test_an_encoder_keeps_nothing_of_what_it_has_read(tmp_path):
    settings = {"general.architecture": "bert", "bert.block_count": 12, "bert.context_length": 512,
                "bert.embedding_length": 384, "bert.attention.head_count": 12}  # fmt: skip
    found = fitted(llama(tmp_path / "m.gguf", **settings), 40 * GB, FitOptions(whole_texts=True))

    assert found.need.cache == 0
    assert (found.context, found.batch) == (512, 512)


def test_the_contexts_that_are_tried():
    assert halves(3000) == [3000, 1500, 750]


def test_the_machine_has_no_more_than_it_has():
    assert 0 < physical_cores() <= cores()
    assert 0 < available_nbytes() <= memory_nbytes()


@pytest.mark.llamacpp
@pytest.mark.trained
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4, "num_hidden_layers": 5},
        {"head_dim": 128, "num_key_value_heads": 1},
    ],
    ids=str,
)
def test_the_cache_is_as_large_as_the_engine_makes_it(changes, toolchain, tmp_path):
    """As llama-server logs it."""
    base = make_base(tmp_path / "base", max_position_embeddings=4096, **changes)
    path = tmp_path / "model.gguf"
    export(ExportRequest((), base, ("F16",), (path,)), toolchain)
    model = read_gguf(path, keep_items=LAYERS_KEPT)

    class Loud(Server):
        def argv(self, *, on_port: bool) -> list[str]:
            return [*super().argv(on_port=on_port), "--log-verbosity", "4"]

    with Loud(ServerSpec(path, 4096, threads=1), toolchain) as server:
        log = server.run_folder.log.read_text()
    made = sum(float(found) * 2**20 for found in re.findall(r"KV buffer size = +([\d.]+) MiB", log))
    ours = reckon(model, 4096, "f16", 0)

    assert made == pytest.approx(ours.cache, abs=2**20 / 100)  # it is logged with two places
    work = sum(float(n) * 2**20 for n in re.findall(r"compute buffer size = +([\d.]+) MiB", log))
    assert 0.5 * work < ours.work < 4 * work  # the allocator's is an estimate


def test_the_lines_for_verbose_say_what_was_decided(tmp_path):
    found = fitted(llama(tmp_path / "m.gguf"), 16 * GB)

    assert "8192 tokens of the 131072" in found.lines()[0]
    assert replace(found).lines()[1] == "threads: 4"


@pytest.mark.parametrize(
    ("rows", "threads"), [(64, 1), (1024, 1), (4096, 2), (8192, 4), (1 << 20, 4)]
)
def test_a_small_model_gets_fewer_threads_than_there_are_cores(tmp_path, rows, threads):
    model = llama(tmp_path / "m.gguf")
    kind = GGMLType.by_name("Q4_K")
    model = replace(model, tensors=[TensorInfo("output.weight", (rows, 4096), kind, 0, model.path)])

    assert fitted(model, 16 * GB).threads == threads
    assert fitted(model, 16 * GB, FitOptions(threads=3)).threads == 3


def layered(path, layers: int = 32) -> GGUFFile:
    """As `llama`, with the weights in their layers: 128 MiB each, and 288 MiB of output."""
    kind = GGMLType.by_name("Q4_K")
    names = [f"blk.{n}.ffn_up.weight" for n in range(layers)]
    tensors = [TensorInfo(name, (58254, 4096), kind, 0, path) for name in names]
    ends = [TensorInfo(n, (128256, 4096), kind, 0, path) for n in ("token_embd.weight", "output")]
    return GGUFFile(path, 0, llama(path).metadata, (*tensors, *ends))


class TestOnAGpu:
    def test_a_model_that_fits_has_all_its_layers_there_and_nothing_is_said(self, tmp_path):
        found = fitted(layered(tmp_path / "m.gguf"), GB, backend="cuda", gpu=24 * GB)

        assert (found.gpu_layers, found.is_split, found.warnings()) == (33, False, [])
        assert "layers on a GPU: all 33 (cuda)" in found.lines()
        assert "GPU memory: 24.00 GB free before loading" in found.lines()

    def test_a_larger_one_is_told_before_loading_with_what_fits(self, tmp_path):
        model, card = layered(tmp_path / "m.gguf"), int(6.9 * GB)
        found = fitted(model, 64 * GB, backend="cuda", gpu=card)
        (said,) = found.warnings()

        assert "`m.gguf` is larger than what the GPU has room for: it needs 6.24 GB (" in said
        assert f"about {found.gpu_layers} of 33 layers" in said
        context = int(re.search(r"; --ctx (\d+) fits$", said)[1])
        assert (
            fitted(model, 64 * GB, FitOptions(context), backend="cuda", gpu=card).gpu_layers == 33
        )

    def test_where_no_context_is_small_enough_a_quantization_is_named(self, tmp_path):
        found = fitted(layered(tmp_path / "m.gguf"), 64 * GB, backend="cuda", gpu=4 * GB)

        assert "decant export … -q " in found.warnings()[0]
        assert 0 < found.gpu_layers < 33

    def test_the_last_layers_are_there_and_their_sizes_count(self, tmp_path):
        """1 GiB is left to others; then come the values, the output and layers with their cache."""
        model = layered(tmp_path / "m.gguf")
        whole = fitted(model, 64 * GB, backend="cuda", gpu=64 * GB).need
        layer = model.tensors[0].nbytes + whole.cache // 32
        gpu = (1 << 30) + whole.work + model.tensors[-1].nbytes + 10 * layer
        found = fitted(model, 64 * GB, backend="cuda", gpu=gpu)

        assert found.gpu_layers == 11
        assert fitted(model, 64 * GB, backend="cuda", gpu=gpu - 1).gpu_layers == 10

    def test_what_neither_memory_holds_is_refused_with_both(self, tmp_path):
        with pytest.raises(SpaceError) as caught:
            fitted(layered(tmp_path / "m.gguf"), GB, backend="cuda", gpu=2 * GB)

        assert "1.00 GB of memory are free beside 2.00 GB on the GPU" in caught.value.message

    def test_a_full_card_leaves_all_to_the_processor(self, tmp_path):
        found = fitted(layered(tmp_path / "m.gguf"), 64 * GB, backend="cuda", gpu=0)

        assert found.gpu_layers == 0
        assert found.is_split

    def test_several_conversations_must_fit_together(self, tmp_path):
        options = FitOptions(parallel=4)
        found = fitted(layered(tmp_path / "m.gguf"), 64 * GB, options, backend="cuda", gpu=7 * GB)

        assert found.is_split
        context = int(found.smaller.split()[1])
        fits = fitted(
            layered(tmp_path / "m.gguf"), 64 * GB, replace(options, context=context),
            backend="cuda", gpu=7 * GB,
        )  # fmt: skip
        assert not fits.is_split
