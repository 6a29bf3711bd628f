import pytest

from tests.serving.stores import servers


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """Of a server that all tests share."""
    if servers.PROGRAM is None:
        pytest.skip("neither redis-server nor valkey-server is on the PATH")
    with servers.running(tmp_path_factory.mktemp("redis")) as url:
        yield url
