"""A training that a signal stops: what it was doing is finished, and nothing is lost."""

import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from star_jax import artefacts
from star_jax.train.checkpoints import step_path
from star_jax.train.stopping import Stopped, stopping
from tests.train import regression

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def handled():
    """Whoever starts the tests may ignore Ctrl-C, as a shell does for what it puts aside."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def rows(folder):
    """What was reported, without times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    names = ("step", "split", "loss", "gradient_norm", "score")
    return [{n: row[n] for n in names if n in row} for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, regression.run(folder, regression.Job())


class Told(regression.Batches):
    """Gets a signal when it is asked for the batch after `at`, or to go to that position."""

    def __init__(self, signum, *, at=None, going_to=None):
        super().__init__()
        self.signum, self.at, self.going_to = signum, at, going_to

    def __next__(self):
        if self.position == self.at:
            os.kill(os.getpid(), self.signum)
        return super().__next__()

    def set_state(self, state):
        super().set_state(state)
        if self.position == self.going_to:
            os.kill(os.getpid(), self.signum)


def validating(signum, at):
    def validate(state):
        if int(state.step) == at:
            os.kill(os.getpid(), signum)
        return regression.distance(state)

    return validate


def saving(monkeypatch, signum, at):
    """The signal comes when the arrays are written and the manifest is not."""
    seal = artefacts.seal

    def told(folder, kind, meta):
        if folder.name == f".step-{at:08d}.partial":
            os.kill(os.getpid(), signum)
        seal(folder, kind, meta)

    monkeypatch.setattr(artefacts, "seal", told)


def goes_on(folder, whole):
    """As the run that was never stopped, bit by bit."""
    resumed = regression.run(folder, regression.Job())
    assert resumed.best == whole[1].best
    for name in ("trainable", "opt_state"):
        one, other = (getattr(t.state, name) for t in (resumed, whole[1]))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert rows(folder) == rows(whole[0])
    assert not list((folder / "checkpoints").glob(".*"))


def stops(folder, step, signum, **options):
    before = [signal.getsignal(each) for each in SIGNALS]
    said = rf"stopped by {signum.name} after step {step}; .*/step-0*{step} holds it"
    with pytest.raises(Stopped, match=said) as caught:
        regression.run(folder, regression.Job(), **options)
    assert caught.value.exit_code == {signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    assert [signal.getsignal(each) for each in SIGNALS] == before
    newest = max((folder / "checkpoints").iterdir())
    assert newest == step_path(folder / "checkpoints", step)
    artefacts.verify(newest)


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda s: s.name)
@pytest.mark.parametrize("at", [0, 6])
def test_the_step_that_runs_is_finished_and_saved(tmp_path, whole, signum, at):
    stops(tmp_path, at + 1, signum, batches=Told(signum, at=at))
    assert rows(tmp_path)[-1]["step"] == at + 1
    goes_on(tmp_path, whole)


@pytest.mark.parametrize("step", [0, 8, 12])  # Before the first step, amid, at the end.
def test_a_validation_is_finished_and_saved(tmp_path, whole, step):
    stops(tmp_path, step, signal.SIGTERM, validate=validating(signal.SIGTERM, step))
    assert rows(tmp_path)[-1] == rows(whole[0])[len(rows(tmp_path)) - 1]
    goes_on(tmp_path, whole)


@pytest.mark.parametrize("step", [0, 4])
def test_a_save_is_finished_and_no_other_step_begun(tmp_path, whole, step, monkeypatch):
    saving(monkeypatch, signal.SIGTERM, step)
    stops(tmp_path, step, signal.SIGTERM)
    goes_on(tmp_path, whole)


def test_a_resumed_run_stops_before_its_first_step(tmp_path, whole):
    stops(tmp_path, 7, signal.SIGTERM, batches=Told(signal.SIGTERM, at=6))
    stops(tmp_path, 7, signal.SIGTERM, batches=Told(signal.SIGTERM, going_to=7))
    goes_on(tmp_path, whole)


def test_a_second_signal_ends_at_once(tmp_path, whole):
    class Twice(Told):
        def __next__(self):
            if self.position == self.at:
                os.kill(os.getpid(), signal.SIGTERM)  # Is noted; SIGINT is the second one.
            return super().__next__()

    with pytest.raises(KeyboardInterrupt):
        regression.run(tmp_path, regression.Job(), batches=Twice(signal.SIGINT, at=6))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert max((tmp_path / "checkpoints").iterdir()).name == "step-00000004"
    goes_on(tmp_path, whole)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.settled(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_train_without_handlers(tmp_path, whole):
    before = [signal.getsignal(each) for each in SIGNALS]
    seen = []

    class Seeing(regression.Batches):
        def __next__(self):
            seen.append([signal.getsignal(each) for each in SIGNALS])
            return super().__next__()

    def train():
        regression.run(tmp_path, regression.Job(), batches=Seeing())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(seen) == regression.Job().num_steps
    assert all(each == before for each in seen)
    assert rows(tmp_path) == rows(whole[0])
