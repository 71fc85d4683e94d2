"""The chat template of a vLLM folder: vLLM has one for the base and all adapters.

`decant serve` renders each adapter's conversations with the template that was saved with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from exporter.core.events import Note, Report
from exporter.merge.result_files import DEFAULT, TEMPLATE, templates_in


def common_template(
    adapters: Mapping[str, Path], base: Path | None, *, report: Report
) -> str | None:
    """The text of the one template that fits, if it is not the base's; a note says what does not.

    adapters: the folders by name. base: its folder, None if it is not on this machine. Raises
    AdapterError for a damaged file.
    """
    bases = templates_in(base).get(DEFAULT) if base else None
    own = {name: templates_in(folder).get(DEFAULT) for name, folder in adapters.items()}
    different = {name: text for name, text in own.items() if text and text != bases}
    if not different:
        return None
    texts, names = set(different.values()), ", ".join(different)
    has_none = base is not None and bases is None
    if len(texts) == 1 and (has_none or len(different) == len(adapters)):
        if bases:
            report(
                Note(
                    f"vLLM has one chat template for all models: {TEMPLATE} is that of {names}, and"
                    " the base's own is not used"
                )
            )
        return texts.pop()
    report(
        Note(
            f"vLLM has one chat template for all models, here the base's: {names} had another in"
            " training; export adapters of one template into one folder"
        )
    )
    return None
