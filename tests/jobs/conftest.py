"""What several files of graph training start from."""

import pytest

from tests.jobs.together import free_port, of_python
from tests.pipeline import graph_market


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """Tables, graph and text vectors; tests copy them before they train."""
    return graph_market.write(tmp_path_factory.mktemp("market"))


@pytest.fixture
def begin():
    """Starts two processes of a script of these tests, and ends what is left of them."""
    running = []

    def begin(script, folder, *arguments):
        port = str(free_port())
        for index in range(2):
            command = [f"tests.jobs.{script}", str(folder), *arguments, port, "2", str(index)]
            with (folder / f"{index}.log").open("a") as log:
                running.append(of_python(command, log))
        return running[-2:]

    yield begin
    for process in running:
        process.kill()
        process.wait()
