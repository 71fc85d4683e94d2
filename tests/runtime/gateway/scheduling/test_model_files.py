"""Model files that another process replaces or deletes while a server has them in its list."""

from __future__ import annotations

import pytest

from runtime.gateway.api_errors import ApiError
from runtime.gateway.call import Gateway
from runtime.gateway.catalog import Catalog
from runtime.gateway.scheduling.pool import EnginePool
from tests.support.fake_pool import asked, hold, running

pytestmark = pytest.mark.lasting

ROUTE, BODY = "/v1/completions", {"model": "m", "prompt": "x"}


def replace_file(path, content: bytes) -> None:
    """Put another file there, as an export does that replaces one."""
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


def test_a_model_of_other_weights_is_taken_at_the_next_load(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        path = catalog.find("m").model.header.path
        assert (await asked(gateway, ROUTE, BODY))[0] == 200
        content = path.read_bytes()
        replace_file(path, content[:-1] + bytes([content[-1] ^ 1]))
        assert (await asked(gateway, ROUTE, BODY))[0] == 200  # by the process that has the old one
        for engine in pool.engines.values():
            await pool.stop(engine)
        assert (await asked(gateway, ROUTE, BODY))[0] == 200
        assert "has changed on disk: the new file is used" in (tmp_path / "told").read_text()

    running(test, tmp_path, model("m"))


def test_a_model_of_other_tokens_does_not_answer_with_those_of_the_first(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        path = catalog.find("m").model.header.path
        content = path.read_bytes()
        replace_file(path, content.replace(b"<s>", b"<z>"))

        for _ in range(2):
            status, told = await asked(gateway, ROUTE, BODY)
            assert status == 503
            assert "is another model than at the start" in told["error"]["message"]
            assert str(tmp_path) not in told["error"]["message"]
        replace_file(path, content)
        assert (await asked(gateway, ROUTE, BODY))[0] == 200

    running(test, tmp_path, model("m"))


def test_a_model_that_is_deleted_answers_until_it_is_unloaded(model, tmp_path):
    async def test(pool: EnginePool, catalog: Catalog) -> None:
        gateway = Gateway(pool.settings, catalog, pool)
        path = catalog.find("m").model.header.path
        assert (await asked(gateway, ROUTE, BODY))[0] == 200
        path.rename(path.with_name("away"))
        assert (await asked(gateway, ROUTE, BODY))[0] == 200
        for engine in pool.engines.values():
            await pool.stop(engine)
        with pytest.raises(ApiError, match="cannot be read any more") as caught:
            await hold(pool, catalog.find("m"))
        assert caught.value.status == 503
        path.with_name("away").rename(path)
        assert (await asked(gateway, ROUTE, BODY))[0] == 200

    running(test, tmp_path, model("m"))
