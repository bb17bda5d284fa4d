"""Both stores, for the whole session, and a cache of each test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cm3leon_jax.storage import objects
from tests.storage import servers


@pytest.fixture(scope="session")
def stores() -> Iterator[dict[str, str]]:
    """The variables by which both stores are found."""
    with servers.google() as google, servers.amazon() as amazon:
        yield servers.environment(google, amazon)


@pytest.fixture
def cache(stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of this test, in a process that finds both stores."""
    for name, value in (stores | {"CM3LEON_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    servers.forget_stores()
    yield tmp_path / "cache"
    servers.forget_stores()


@pytest.fixture(params=["gs", "s3"])
def root(request: pytest.FixtureRequest, cache: Path, tmp_path: Path) -> str:
    """An address of this test's own."""
    return f"{request.param}://{servers.BUCKET}/{tmp_path.name}"


@pytest.fixture(params=["gs", "s3"])
def disturbed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, servers.Proxy]]:
    """An address, and the proxy before its store."""
    store = servers.google() if request.param == "gs" else servers.amazon()
    with store as port:
        proxy = servers.Proxy(port)
        for name, value in servers.environment(proxy.port, proxy.port).items():
            monkeypatch.setenv(name, value)
        for name in ("TENSORSTORE_GCS_HTTP_URL", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("CM3LEON_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(objects, "_FIRST_WAIT", 0.05)
        servers.forget_stores()
        yield f"{request.param}://{servers.BUCKET}/faults", proxy
        servers.forget_stores()
        proxy.close()
