import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train import kills


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_no_kill_loses_a_step_or_changes_the_end(tmp_path, count):
    """In processes of their own: a fork of this one would inherit its devices."""
    root = Path(kills.__file__).parents[2]
    command = [sys.executable, kills.__file__, tmp_path / "runs", "--kills", str(count)]
    done = subprocess.run(
        [*command, "--seed", str(count)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, *lines, last = done.stdout.splitlines()
    assert header.split() == ["kill", "began", "resumed", "committed", "amid", "verified", "lost"]
    assert len(lines) == count
    committed = [-1 if step == "-" else int(step) for step in (line.split()[3] for line in lines)]
    assert committed == sorted(committed)
    assert committed[-1] > 0
    assert re.fullmatch(rf"{count} kills, 0 lost steps, final state of step \d+ equal: True", last)
