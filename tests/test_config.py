import dataclasses
import json
import re
from pathlib import Path
from typing import Literal

import pytest

from star_jax.config import (
    InputError,
    check_same,
    difference,
    fields,
    from_json,
    load_config,
    override,
    to_json,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rank: int = 8
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k")
    seed: int = 1

    def __post_init__(self):
        if self.alpha < self.rank:
            raise ValueError(f"alpha {self.alpha} is below rank {self.rank}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    lora: Inner = Inner()
    extra: Inner | None = None
    rate: float = 1e-4
    steps: int | None = None
    mode: Literal["fast", "slow"] = "fast"
    source: Path | None = None
    shuffle: bool = True
    seed: int = 0
    pairs: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--rate", "-2e-3"], {"rate": -2e-3}),
        (["--rate=3"], {"rate": 3.0}),
        (["--steps", "7"], {"steps": 7}),
        (["--steps", "None"], {"steps": None}),
        (["--mode", "slow"], {"mode": "slow"}),
        (["--source", "a/b c"], {"source": Path("a/b c")}),
        (["--shuffle", "False"], {"shuffle": False}),
        (["--shuffle"], {"shuffle": True}),
        (["--lora.targets", "v", "o"], {"lora": Inner(targets=("v", "o"))}),
        # Neither alone passes the check of Inner: it runs once, on both.
        (["--lora.rank", "64", "--lora.alpha", "64"], {"lora": Inner(rank=64, alpha=64.0)}),
    ],
)
def test_override_sets_typed_fields(args, expected):
    assert override(Outer(), args) == dataclasses.replace(Outer(), **expected)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lora.rnk", "3"], "--lora.rnk is unknown; the nearest field is lora.rank"),
        (["--rank", "3"], "--rank is unknown; the nearest field is lora.rank"),
        (["--zzz", "3"], "--zzz is unknown; no field has a similar name"),
        (["--lora.rank", "eight"], "--lora.rank got 'eight', needed int"),
        (["--lora.rank", "1.5"], "--lora.rank got '1.5', needed int"),
        (["--lora.rank"], "--lora.rank got 'nothing', needed int"),
        (["--lora.rank", "1", "2"], "--lora.rank got '1 2', needed int"),
        (["--rate", "x"], "--rate got 'x', needed float"),
        (["--mode", "medium"], "--mode got 'medium', needed Literal['fast', 'slow']"),
        (["--lora", "3"], "--lora is a group, needed one of its fields: --lora.rank, "),
        (["--lora.rank", "64"], "--lora.rank 64: alpha 32.0 is below rank 64"),
        (["--rate", "1", "--rate", "2"], "--rate is given twice"),
        (["3"], "'3' is no option, needed --a.b value"),
        (["--lora.alpha=nan"], "--lora.alpha nan, needed a finite number"),
        (["--rate=inf"], "--rate inf, needed a finite number"),
        (["--rate", "-inf"], "--rate -inf, needed a finite number"),
        (["--pairs", "2.0", "nan"], "--pairs.1 nan, needed a finite number"),
        (["--seed=-1"], "--seed -1, needed 0 to 2147483647"),
        (["--seed", "2147483648"], "--seed 2147483648, needed 0 to 2147483647"),
        (["--lora.seed", "-7"], "--lora.seed -7, needed 0 to 2147483647"),
    ],
)
def test_override_errors_are_one_line(args, message, capfd):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        override(Outer(), args)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "config", [Outer(), Outer(extra=Inner(rank=2), steps=3, source=Path("x"), lora=Inner(rank=1))]
)
def test_json_round_trip(config):
    assert from_json(Outer, to_json(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"rank": 8', '"rank": "8"', "lora.rank got '8': needed a valid integer"),
        ('"rank": 8', '"rank": 8.0', "lora.rank got 8.0: needed a valid integer"),
        ('"rank": 8', '"rank": 99', "lora: alpha 32.0 is below rank 99"),
        ('"rate": 0.0001', '"rates": 0.0001', "rates is unknown; the nearest field is rate"),
        ('"rate": 0.0001,', "", "rate is missing, needed by Outer"),
        ('"alpha": 32.0', '"alpha": NaN', "lora.alpha nan, needed a finite number"),
        ('"rate": 0.0001', '"rate": Infinity', "rate inf, needed a finite number"),
        ('"pairs": []', '"pairs": [1.0, NaN]', "pairs.1 nan, needed a finite number"),
        ('"seed": 1', '"seed": -1', "lora.seed -1, needed 0 to 2147483647"),
        ('"fast"', '"quick"', "mode got 'quick': needed 'fast' or 'slow'"),
    ],
)
def test_json_is_read_strictly(old, new, message):
    text = to_json(Outer())
    assert old in text
    with pytest.raises(InputError, match=re.escape(message)):
        from_json(Outer, text.replace(old, new))


def test_difference_names_paths():
    a = Outer()
    b = dataclasses.replace(a, rate=2.0, lora=Inner(targets=("v",)), extra=Inner())
    assert set(difference(to_json(a), to_json(b))) == {
        "rate: 0.0001 -> 2.0",
        'lora.targets: ["q", "k"] -> ["v"]',
        "extra: null -> (absent)",
        "extra.rank: (absent) -> 8",
        "extra.alpha: (absent) -> 32.0",
        'extra.targets: (absent) -> ["q", "k"]',
        "extra.seed: (absent) -> 1",
    }
    assert difference(to_json(a), to_json(Outer())) == []


def test_check_same_stops_a_changed_run():
    check_same(to_json(Outer()), Outer(), "runs/a")
    with pytest.raises(InputError, match=r"runs/a was begun with another config \(rate: 0.0001 ->"):
        check_same(to_json(Outer()), Outer(rate=1.0), "runs/a")


def test_fields_lists_full_paths():
    assert fields(Outer())["lora.rank"] == 8
    assert "lora" not in fields(Outer())
    assert set(fields(Outer())) == {
        *("lora.rank", "lora.alpha", "lora.targets", "lora.seed"),
        *("extra", "rate", "steps", "mode", "source", "shuffle", "seed", "pairs"),
    }


def _write(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(f"from tests.test_config import Inner, Outer\n{body}", encoding="utf-8")
    return path


def test_load_config_runs_the_file(tmp_path):
    path = _write(tmp_path, "def get_config():\n    return Outer(rate=1)\n")
    config = load_config(path)
    assert json.loads(to_json(config)) == json.loads(to_json(Outer(rate=1.0)))
    assert isinstance(config.rate, float)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "mine.py has no get_config()"),
        ("def get_config(:\n", "mine.py:2: SyntaxError: "),
        ("import star_jax.no_such\n", "mine.py:2: ModuleNotFoundError: No module named"),
        (
            "def get_config():\n    return Outer(rnk=1)\n",
            "mine.py:3: Outer has no field rnk; no field has",
        ),
        (
            "def get_config():\n    return Inner(rnk=1)\n",
            "mine.py:3: Inner has no field rnk; the nearest",
        ),
        (
            "def get_config():\n    return Inner(rank=64)\n",
            "mine.py:3: alpha 32.0 is below rank 64",
        ),
        (
            "import os\nos.stat('/nowhere')\n",
            "mine.py:3: FileNotFoundError: [Errno 2] No such file",
        ),
        ("def get_config():\n    return {}['a']\n", "mine.py:3: KeyError: 'a'"),
        ("def get_config():\n    return 1 // 0\n", "mine.py:3: ZeroDivisionError: integer div"),
        ("def get_config():\n    assert False\n", "mine.py:3: AssertionError"),
        ("raise RuntimeError('two\\nlines')\n", "mine.py:2: RuntimeError: two lines"),
        ("import sys\nsys.exit(3)\n", "mine.py:3: SystemExit: 3"),
        ("def get_config():\n    return int('x')\n", "mine.py:3: ValueError: invalid literal for"),
        (
            "def helper():\n    raise OSError('inner')\ndef get_config():\n    return helper()\n",
            "mine.py:3: OSError: inner",
        ),
        ("def get_config():\n    return 3\n", "get_config() returned int, needed a config"),
        (
            "def get_config():\n    return Outer(lora=Inner(alpha=float('nan')))\n",
            "mine.py: lora.alpha nan, needed a finite number",
        ),
        (
            "def get_config():\n    return Outer(rate='x')\n",
            "mine.py: rate got 'x': needed a valid",
        ),
        ("def get_config():\n    return Outer(lora=3)\n", "mine.py: lora got 3: "),
    ],
)
def test_load_config_errors_point_at_the_line(tmp_path, body, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        load_config(_write(tmp_path, body))
    assert "\n" not in str(error.value)


def test_load_config_names_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.py does not exist"):
        load_config(tmp_path / "none.py")
