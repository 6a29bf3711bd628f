from types import SimpleNamespace

import jax
import pytest

from star_jax.train import meter as metering
from star_jax.train.meter import Arithmetic, Counts, Meter, peak_flops, peak_memory


@pytest.fixture
def now(monkeypatch):
    class Clock:
        value = 100.0

    monkeypatch.setattr(metering.time, "monotonic", lambda: Clock.value)
    return Clock


COUNTS = Counts(units=600, slots=800, arithmetic=Arithmetic(model=2e6, hardware=3e6))


def device(kind, stats=None):
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)


def test_rates_by_hand_without_pauses_and_without_the_first_step(now):
    meter = Meter("tokens", 1e7)
    now.value += 50.0  # Compiling.
    meter.advance(COUNTS, waited_s=50.0)
    assert "tokens_per_s" not in meter.figures()
    for _ in range(4):
        now.value += 0.5
        with meter.pausing():
            now.value += 30.0  # A validation.
        meter.advance(COUNTS, waited_s=0.125)
    found = meter.figures()
    assert found["tokens_per_s"] == pytest.approx(600 / 0.5)
    assert found["data_wait"] == pytest.approx(0.125 / 0.5)
    assert found["mfu"] == pytest.approx(2e6 / 0.5 / 1e7)
    assert found["hfu"] == pytest.approx(3e6 / 0.5 / 1e7)


def test_stages_of_the_host_as_shares_of_the_time_that_passes(now):
    meter = Meter("pairs", None)
    assert "compute_share" not in meter.figures()
    stages = COUNTS._replace(seconds={"sampling": 1.5, "gather": 0.5})
    for counts in (stages, stages, COUNTS, stages):
        now.value += 2.0
        meter.advance(counts, waited_s=0.5)
    found = meter.figures()
    assert found["sampling_share"] == pytest.approx(2 * 1.5 / 6.0)
    assert found["gather_share"] == pytest.approx(2 * 0.5 / 6.0)
    assert found["compute_share"] == pytest.approx(0.75)


def test_old_steps_are_forgotten(now):
    meter = Meter("pairs", None)
    for seconds in [10.0] * 10 + [1.0] * 61:
        now.value += seconds
        meter.advance(COUNTS, 0.0)
    assert meter.figures()["pairs_per_s"] == pytest.approx(600.0)


@pytest.mark.parametrize(
    ("peak", "counts"), [(None, COUNTS), (1e7, COUNTS._replace(arithmetic=None))]
)
def test_what_is_not_known_is_not_said(now, peak, counts):
    meter = Meter("pairs", peak)
    for _ in range(3):
        now.value += 1.0
        meter.advance(counts, 0.0)
    assert not {"mfu", "hfu"} & set(meter.figures())


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_peaks_of_the_data_sheets_add_up(kind, peak):
    assert peak_flops([device(kind)] * 4, None) == 4 * peak
    assert peak_flops([device(kind)] * 2, 5e12) == 1e13


def test_an_unknown_peak_is_said_once_and_not_invented(caplog):
    caplog.set_level("INFO")
    assert peak_flops([device("cpu")], None) is None
    assert caplog.messages == ["no peak FLOP/s is known of cpu, and none is given: no MFU, no HFU"]


def test_memory_of_the_fullest_device_or_of_the_process(monkeypatch):
    stats = [{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 9}]
    monkeypatch.setattr(jax, "local_devices", lambda: [device("x", s) for s in stats])
    assert peak_memory() == {"peak_device_bytes": 9.0}
    monkeypatch.setattr(jax, "local_devices", lambda: [device("cpu")])
    with open("/proc/self/status", encoding="utf-8") as file:  # noqa: PTH123 - no file of ours.
        (line,) = [line for line in file if line.startswith("VmHWM")]
    assert peak_memory()["peak_rss_bytes"] == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)
