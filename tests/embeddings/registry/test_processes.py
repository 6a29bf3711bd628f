"""Several processes on one registry, and one that is killed."""

import subprocess
import sys
from pathlib import Path

from star_jax import artefacts
from tests.embeddings.registry.artefact import embeddings

SCRIPT = Path(__file__).parent / "other_process.py"
ROOT = Path(__file__).parents[3]


def start(*args):
    return subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )


def meet(*processes):
    """Lets all go on when all have decided; what they say then."""
    for process in processes:
        assert process.stdout.readline() == "decided\n", process.communicate()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate() for process in processes]
    assert [error for _, error in said] == [""] * len(said)
    return [out.strip() for out, _ in said]


def test_of_two_processes_one_promotes_and_the_other_is_told(local):
    local.remove_consumer("ads", "market")
    racing = [start("race", local.url, "market@1", ref) for ref in ("market@2", "market@3")]
    meeting = [start("meet", local.url, ref) for ref in ("market@2", "market@3")]
    before = len(local.events())
    said = meet(*meeting)
    winner = said.index("won")
    other = said[1 - winner]
    assert "was changed meanwhile: event " in other
    assert f"promote market@{2 + winner}; nothing of this was done; look at `star regi" in other
    assert local.version("market").ref == f"market@{2 + winner}"
    assert len(local.events()) == before + 1
    before += 1
    won = [int(number) for number in meet(*racing)]
    assert min(won) > 0
    assert len(local.events()) == before + sum(won)  # Nothing was lost, nothing counted twice.
    assert local.verify().problems == []


def test_a_killed_addition_is_nowhere_and_may_be_repeated(local, tmp_path):
    folder = embeddings(tmp_path / "w" / "v4", "v4")
    killed = start("die", local.url, folder)
    assert killed.communicate() == ("", "")
    assert killed.returncode == -9
    assert "market@4" not in local.state().versions
    found = local.verify()
    assert found.problems == []
    assert [Path(name).name for name in found.left_over] == ["vectors.bin"]
    assert local.add(folder, "market").ref == "market@4"
    assert local.verify().left_over == []
    artefacts.verify(local.folder("market@4"))
