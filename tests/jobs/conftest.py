"""What several files of graph training start from."""

import pytest

from tests.pipeline import graph_market


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """Tables, graph and text vectors; tests copy them before they train."""
    return graph_market.write(tmp_path_factory.mktemp("market"))
