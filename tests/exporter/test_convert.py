from __future__ import annotations

import logging

from exporter.converter_import import HARMLESS, warnings_reported
from exporter.core.events import Event, Warn


def test_the_converters_warnings_become_events_and_its_chatter_is_dropped(capsys):
    events: list[Event] = []
    logger = logging.getLogger("hf-to-gguf")
    with warnings_reported(events.append):
        logger.info("gguf: indexing model part")
        logger.warning("the vocabulary is %s", "odd")
        logger.warning(HARMLESS[0])

    assert events == [Warn("llama.cpp's converter: the vocabulary is odd")]
    assert capsys.readouterr().err == ""
    assert (logger.handlers, logger.propagate) == ([], True)
