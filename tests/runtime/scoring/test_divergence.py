"""Divergences of one model's distributions from another's."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from exporter.export import export
from exporter.formats.export_request import ExportRequest
from runtime.encoder_decoder.model import Flag
from runtime.encoder_decoder.openai import RefusedError, read_body
from runtime.scoring.divergence import LEAST_LOGPROB, KeptFolder
from runtime.scoring.likelihood_request import answer_likelihoods, read_likelihood_request
from runtime.scoring.scorer import Scorer
from runtime.scoring.scores import ScoringTask


def logits(seed: int, *, spread: float = 3.0, rows: int = 40, width: int = 5000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (rows, width)).astype(np.float32)


def compared(folder, theirs, ours, parts=(7, 33)) -> list[float]:
    """Their distributions, kept in parts, and ours, compared in others."""
    ids = list(range(len(theirs)))
    kept = KeptFolder(folder, 1 << 30)
    with kept.writer(3, ids, theirs.shape[1]) as writer:
        for part in np.split(theirs, [parts[0]]):
            writer.take(part)
    with kept.reader(3, ids, theirs.shape[1]) as reader:
        for part in np.split(ours, [parts[1]]):
            reader.take(part)
    return reader.found


@pytest.mark.parametrize("noise", [0.02, 0.1, 1.0])
def test_divergences_are_scipys(tmp_path, noise):
    theirs = logits(0)
    ours = theirs + noise * logits(1, spread=1.0)

    found = compared(tmp_path, theirs, ours)

    pairs = (log_softmax(one.astype(float), axis=1) for one in (theirs, ours))
    wanted = rel_entr(*(np.exp(one) for one in pairs)).sum(axis=1)
    assert found == pytest.approx(list(wanted), rel=1e-2)
    assert np.mean(found) == pytest.approx(wanted.mean(), rel=1e-3)


def test_a_model_does_not_diverge_from_itself(tmp_path):
    assert max(compared(tmp_path, logits(0), logits(0))) < 1e-7


def test_a_token_that_is_impossible_to_one_model_gives_a_finite_divergence(tmp_path):
    ours = logits(0)
    ours[:, 0] = -np.inf

    found = compared(tmp_path, logits(0), ours)

    assert np.isfinite(found).all()
    assert max(found) < -LEAST_LOGPROB


def test_what_has_no_room_is_not_kept(tmp_path):
    kept = KeptFolder(tmp_path, 3000)

    with kept.writer(1, [5], 1000) as writer:
        writer.take(logits(0, rows=1, width=1000))

    assert kept.writer(2, [5], 1000) is None
    assert KeptFolder(tmp_path, 3000).writer(2, [5], 1000) is None, "also of a new process"
    assert [file.name for file in tmp_path.iterdir()] == ["1"]


def test_a_text_of_other_tokens_is_not_compared(tmp_path):
    kept = KeptFolder(tmp_path, 1 << 20)
    with kept.writer(1, [5, 6], 10) as writer:
        writer.take(logits(0, rows=2, width=10))

    assert kept.reader(1, [5, 7], 10) is None
    assert kept.reader(1, [5, 6], 11) is None
    assert kept.reader(2, [5, 6], 10) is None


def test_what_was_not_written_to_its_end_is_no_file(tmp_path):
    kept = KeptFolder(tmp_path, 1 << 20)

    with pytest.raises(KeyError), kept.writer(1, [5, 6], 10) as writer:
        writer.take(logits(0, rows=1, width=10))
        raise KeyError

    assert not list(tmp_path.iterdir())


def request_of(engine, **fields):
    body = {"context": ["a b c"], "endings": ["d e f g h i j k l m n o p"], **fields}
    return read_likelihood_request(read_body(json.dumps(body).encode()), engine)


def asked(engine, folder, **fields):
    """The engine's answer to a request."""
    return answer_likelihoods(engine, request_of(engine, **fields), Flag(), folder)


@pytest.mark.llamacpp
def test_a_quantized_model_diverges_as_its_whole_distributions_say(scored, toolchain, tmp_path):
    """The scorer gives all tokens' log-probabilities by another way."""
    folder = KeptFolder(tmp_path, 1 << 30)
    with Scorer(scored.gguf, toolchain=toolchain) as scorer:
        first = asked(scorer.running, folder, keep=0)
        ids = request_of(scorer.running).pairs[0]
        theirs = distributions(scorer, ids)
    with Scorer(scored.quantized, toolchain=toolchain) as scorer:
        second = asked(scorer.running, folder, compare=0)
        ours = distributions(scorer, ids)

    wanted = rel_entr(theirs, ours).sum(axis=1)
    assert first["is_kept"] is True
    assert len(second["divergences"]) == len(ids[1])
    assert second["divergences"] == pytest.approx(list(wanted), rel=1e-2)
    assert np.mean(second["divergences"]) == pytest.approx(wanted.mean(), rel=1e-3)


def distributions(scorer: Scorer, pair: tuple[list[int], list[int]]) -> np.ndarray:
    """The probabilities of all tokens at the places of a text after its context."""
    before, after = pair
    size = scorer.vocabulary.size
    (found,) = scorer.score([[*before, *after]], top=size)
    rows = np.empty((len(after), size))
    part = slice(len(before), len(before) + len(after))
    np.put_along_axis(rows, found.top_ids[part].astype(int), found.top_logprobs[part], axis=1)
    return np.exp(rows)


def perplexity_figures(argv: list[str]) -> dict[str, float]:
    """llama-perplexity's figures; a thread writes them, and its end now and then cuts them off."""
    for _ in range(5):
        words = subprocess.run(argv, capture_output=True, check=True).stdout.decode()
        found = re.findall(r"(Mean|Maximum|99\.0%)\s+KLD:\s+([\d.]+)", words)
        if len(found) == 3:
            return {name: float(value) for name, value in found}
    raise AssertionError(words)


@pytest.mark.llamacpp
@pytest.mark.trained
def test_divergences_are_llama_perplexitys(demo_models, toolchain, tmp_path):
    """It takes the second half of each chunk, whose first token is BOS."""
    files = tuple(tmp_path / f"demo-{quant}.gguf" for quant in ("F32", "Q4_K_M"))
    export(ExportRequest((), demo_models.base, ("F32", "Q4_K_M"), files), toolchain)
    text = " ".join(f"A cow says moo {n} times, and the sky is blue." for n in range(120))
    (tmp_path / "text.txt").write_text(text)
    base, length, chunks = tmp_path / "base.bin", 128, 8
    argv = [toolchain.folder / "bin/llama-perplexity", "-f", tmp_path / "text.txt"]
    argv += ["-c", length, "-b", length, "-t", 1, "--chunks", chunks, "-fa", "off"]
    argv += ["-ctk", "f32", "-ctv", "f32", "--kl-divergence-base", base]
    subprocess.run([*map(str, argv), "-m", files[0]], capture_output=True, check=True)
    theirs = perplexity_figures([*map(str, argv), "-m", str(files[1]), "--kl-divergence"])

    kept = tmp_path / "kept"
    kept.mkdir()
    found: list[float] = []
    for file in files:
        folder = KeptFolder(kept, 1 << 30)
        with Scorer(file, toolchain=toolchain) as scorer:
            ids = scorer.vocabulary.encode(text, special=True)
            for number in range(chunks):
                chunk = [ids[0], *ids[number * length + 1 : (number + 1) * length]]
                first = length // 2 + 1
                asked = (number, chunk[first:], scorer.vocabulary.size)
                sink = folder.writer(*asked) if file == files[0] else folder.reader(*asked)
                with sink:
                    scorer.running.scores(ScoringTask([chunk], [first], take=sink.take))
                found += getattr(sink, "found", [])

    assert np.mean(found) == pytest.approx(theirs["Mean"], rel=1e-3)
    assert np.quantile(found, 0.99) == pytest.approx(theirs["99.0%"], rel=5e-3)
    assert max(found) == pytest.approx(theirs["Maximum"], rel=5e-3)


@pytest.mark.llamacpp
def test_a_request_to_keep_several_texts_or_without_a_folder_is_refused(scored, toolchain):
    with Scorer(scored.gguf, toolchain=toolchain) as scorer:
        with pytest.raises(RefusedError, match="one ending"):
            asked(scorer.running, None, endings=["a", "b"], keep=0)
        with pytest.raises(RefusedError, match="whole number"):
            asked(scorer.running, None, keep="../1")
        with pytest.raises(Exception, match="keeps no distributions"):
            asked(scorer.running, None, keep=1)
