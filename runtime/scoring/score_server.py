"""The scoring engine's routes over a Unix socket; another thread computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from queue import Empty, SimpleQueue

from exporter.core.errors import DecantError, UnsupportedError
from runtime.encoder_decoder.http import POLL_S, Handler, Listener
from runtime.encoder_decoder.model import Flag
from runtime.encoder_decoder.openai import Json, RefusedError, wrong
from runtime.scoring.choices import answer_request
from runtime.scoring.divergence import KeptFolder
from runtime.scoring.forward import StoppedError
from runtime.scoring.likelihood_batch import answer_likelihood_batch, read_likelihood_batch
from runtime.scoring.likelihood_request import answer_likelihoods, read_likelihood_request
from runtime.scoring.score_request import Engine, read_request
from runtime.scoring.score_route import LIKELIHOOD_BATCH, LIKELIHOODS, SCORE


@dataclass(eq=False)
class ScoreJob:
    """A request in the queue, and its answer."""

    compute: Callable[[Engine, Flag], Json]
    """Computes the answer. Raises StoppedError, EngineError and UnsupportedError."""
    stop: Flag
    answers: SimpleQueue[Json | RefusedError]


class ScoreListener(Listener):
    """Answers once constructed; until `engine` is set, it answers that the model is loading."""

    def __init__(self, path: Path, key: str) -> None:
        super().__init__(path, key)
        self.engine: Engine | None = None
        self.scores: SimpleQueue[ScoreJob] = SimpleQueue()
        self.kept: KeptFolder | None = None


class ScoreHandler(Handler):
    """Handles the requests of one connection."""

    server: ScoreListener

    @property
    def is_loading(self) -> bool:
        return self.server.engine is None

    def score(self) -> None:
        fields = self.fields()
        assert self.server.engine is not None
        request = read_request(fields, self.server.engine)
        name = str(fields.body.get("model") or "")
        self.answer_by(lambda engine, stop: answer_request(engine, request, name, stop))

    def likelihoods(self) -> None:
        assert self.server.engine is not None
        request = read_likelihood_request(self.fields(), self.server.engine)
        kept = self.server.kept
        self.answer_by(lambda engine, stop: answer_likelihoods(engine, request, stop, kept))

    def likelihood_batch(self) -> None:
        assert self.server.engine is not None
        batch = read_likelihood_batch(self.fields(), self.server.engine)
        self.answer_by(lambda engine, stop: answer_likelihood_batch(engine, batch, stop))

    def answer_by(self, compute: Callable[[Engine, Flag], Json]) -> None:
        """Have the other thread compute an answer, and send it."""
        job = ScoreJob(compute, Flag(), SimpleQueue())
        self.server.scores.put(job)
        try:
            answer = self.answer_to(job)
        finally:
            job.stop.set()
        if isinstance(answer, RefusedError):
            raise answer
        self.send_json(HTTPStatus.OK, answer)

    def answer_to(self, job: ScoreJob) -> Json | RefusedError:
        """The result of a job. Raises ConnectionAbortedError once the client has gone."""
        while True:
            if self.is_alone():
                raise ConnectionAbortedError("the client has gone")
            try:
                return job.answers.get(timeout=POLL_S)
            except Empty:
                continue


def work(engine: Engine, jobs: SimpleQueue[ScoreJob]) -> None:
    """Run the jobs in the order of arrival, one at a time; never return."""
    while True:
        job = jobs.get()
        if job.stop.is_set:
            continue
        try:
            job.answers.put(job.compute(engine, job.stop))
        except StoppedError:
            pass
        except UnsupportedError as error:
            job.answers.put(wrong(error.message))
        except DecantError as error:
            sys.stderr.write(f"error: {error.message}\n")
            job.answers.put(RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, error.message))


ScoreListener.handler = ScoreHandler
ScoreHandler.routes = {
    "/health": ("GET", Handler.health),
    SCORE: ("POST", ScoreHandler.score),
    LIKELIHOODS: ("POST", ScoreHandler.likelihoods),
    LIKELIHOOD_BATCH: ("POST", ScoreHandler.likelihood_batch),
}
