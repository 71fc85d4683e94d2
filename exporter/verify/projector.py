"""Verifies a projector (mmproj): weights, settings, and one picture or sound in llama.cpp.

pictures.py compares its embeddings of a picture with transformers'.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.core.errors import EngineError, ModelError, SpaceError
from exporter.core.events import Report, silent
from exporter.core.gguf import GGUFFile, read_gguf
from exporter.core.machine import available_nbytes
from exporter.core.paths import size_text
from exporter.quantize.quantizer import Quantizer
from exporter.verify.expected import ROWS, Expected, FolderTokenizer, laid_out
from exporter.verify.light import WHOLE
from exporter.verify.loading import ROOM, not_loaded
from exporter.verify.logits_engine import LogitsEngine
from exporter.verify.metadata import check_metadata
from exporter.verify.strength import Requantizer
from exporter.verify.verification import Check, Verification

if TYPE_CHECKING:
    import numpy as np

    from exporter.llamacpp.toolchain import Toolchain
    from exporter.merge.operations import MergePlan

    Pixels = np.ndarray[Any, Any]

PROJECTOR = "clip"  # general.architecture of a projector's GGUF
ANY_SIZE = {
    "dots_ocr": 2, "glm4v": 2, "kimivl": 2, "ling3vl": 2, "mimovl": 2, "pixtral": 1,
    "qwen2.5vl_merger": 2, "qwen2vl_merger": 2, "qwen3vl_merger": 2,
}  # fmt: skip
"""Projectors for pictures of any size -> sides of patches that form one token's side.

The values are llama.cpp's defaults (clip.cpp: n_merge), for files without the key.
"""
TOKENS = 8  # tokens along a side of a picture of any size
LARGEST = 1024  # pixels of a side
NAME = "loading"
HINT = (
    "llama.cpp cannot run this projector: the model's GGUF works for text without it, and"
    " `--to safetensors` writes the whole model for transformers"
)


@contextmanager
def expected_projector(
    plan: MergePlan,
    toolchain: Toolchain,
    *,
    rows: int = ROWS,
    trust_remote_code: bool = False,
) -> Iterator[Expected]:
    """Lay out the projector of a plan's model, as `expected_of` does the model. Reads no weight."""
    with laid_out(plan, toolchain, "projector", trust_remote_code) as (conversion, folder):
        requantizer = Requantizer(Quantizer.load(toolchain))
        tokens = FolderTokenizer(folder, conversion.loaded, trust_remote_code)
        yield Expected(plan, conversion, folder, tokens, rows, requantizer)


def verify_projector(
    path: Path, model: Path, expected: Expected, toolchain: Toolchain, *, report: Report = silent
) -> Verification:
    """Check a projector's weights and settings, and load it once beside its model in llama.cpp.

    Raises ModelError for a file that is not a projector's GGUF.
    """
    started = time.monotonic()
    file = read_gguf(path, keep_items=WHOLE)
    if file.architecture != PROJECTOR:
        raise ModelError(
            f"`{path}` is a GGUF of the architecture {file.architecture!r}, not of a projector",
            hint="a projector's name begins with mmproj",
        )
    checks = (
        expected.weights(file).check(file, report=report),
        check_metadata(file, expected.conversion, expected.folder),
        check_loading(file, read_gguf(model), toolchain),
    )
    return Verification(path, checks, time.monotonic() - started)


def check_loading(file: GGUFFile, model: GGUFFile, toolchain: Toolchain) -> Check:
    """Load the model and its projector in llama.cpp, and encode a part of a picture."""
    needed, free = file.nbytes + model.nbytes + ROOM, available_nbytes()
    if needed > free:
        return not_loaded(
            f"it needs {size_text(needed)} of memory with its model, and {size_text(free)} are free"
        )
    try:
        with LogitsEngine(toolchain) as engine:
            found, _ = encoded(engine, file, model, picture(side(file)), most=1)
    except (EngineError, ModelError) as error:
        return Check(NAME, (error.message,), "llama.cpp does not load it", hint=HINT)
    except SpaceError as error:
        return not_loaded(error.message)
    what = "a picture" if found["sees"] else "a sound"
    detail = f"llama.cpp loads it beside its model and makes {found['tokens']} tokens of {what}"
    if not found["finite"]:
        return Check(NAME, (f"{detail}, but what comes out is not finite",), detail, hint=HINT)
    return Check(NAME, (), detail, numbers={"tokens": found["tokens"]})


def encoded(
    engine: LogitsEngine,
    file: GGUFFile,
    model: GGUFFile,
    pixels: Pixels,
    *,
    most: int | None = None,
) -> tuple[dict[str, Any], Pixels]:
    """llama.cpp's encoding of a picture (height, width, 3): facts, and (tokens, width) in float32.

    most: parts of the picture to encode. Raises the errors of `LogitsEngine.load` and `ask`.
    """
    import numpy as np

    engine.load(model.path)
    with tempfile.TemporaryDirectory(prefix="decant-") as folder:
        raw, written = Path(folder) / "pixels", Path(folder) / "embeddings"
        raw.write_bytes(pixels.tobytes())
        height, width, _ = pixels.shape
        found = engine.ask(
            "project", path=str(file.path.absolute()), picture=str(raw), size=(width, height),
            written=str(written), most=most,
        )  # fmt: skip
        return found, np.fromfile(written, np.float32).reshape(-1, found["width"])


def projector_type(file: GGUFFile) -> str:
    """A projector's type, in llama.cpp's spelling."""
    return file.text("clip.projector_type") or file.text("clip.vision.projector_type") or ""


def patch_of(file: GGUFFile) -> int:
    """Pixels of a patch's side."""
    return file.number("clip.vision.patch_size") or 1


def merged_of(file: GGUFFile) -> int:
    """Sides of patches that form one token's side; 1 for pictures of a fixed size."""
    default = ANY_SIZE.get(projector_type(file), 1)
    return file.number("clip.vision.spatial_merge_size") or default


def side(file: GGUFFile) -> int:
    """Width of a picture in pixels that needs no resizing."""
    if projector_type(file) in ANY_SIZE:
        return patch_of(file) * merged_of(file) * TOKENS
    return min(file.number("clip.vision.image_size") or LARGEST, LARGEST)


def picture(size: int) -> Pixels:
    """A picture of `size` by `size` pixels, (size, size, 3): smooth and without symmetry."""
    import numpy as np

    y, x = np.mgrid[0:size, 0:size] / size
    waves = 127 + 120 * np.sin(5 * x + 9 * y)
    return np.stack([255 * x, 255 * y, waves], axis=-1).astype(np.uint8)
