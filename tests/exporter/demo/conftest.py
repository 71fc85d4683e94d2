from __future__ import annotations

import pytest

from exporter.demo import DemoModels, make_demo_models
from exporter.llamacpp.toolchain import cache_folder


@pytest.fixture(scope="session")
def demo_models() -> DemoModels:
    """The demo's trained base and adapter, kept between runs. Treat as read-only."""
    return make_demo_models(cache_folder() / "demo")
