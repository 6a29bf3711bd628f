"""Which back end a tower gets, and what is said where the one asked for cannot do it."""

import logging

import jax
import pytest

from star_jax.config import InputError
from star_jax.text import attention_choice, tower
from star_jax.text.attention_choice import Case, Machine, choose_backend, this_machine
from star_jax.text.families import MistralShape, TokenLimits
from star_jax.text.pooling import PoolingConfig
from star_jax.text.tower import TowerConfig, build_tower, param_shapes
from tests.text.fixtures import FOLDER

CPU = Machine("cpu", 0.0, tokamax=True)
GPU = Machine("cuda", 9.0, tokamax=True)
TPU = Machine("tpu", 0.0, tokamax=False)
MISTRAL = Case(128, "bfloat16", "causal", None, packed=False, biased=False)
PACKED = MISTRAL._replace(packed=True)
MINILM = Case(32, "float32", "bidirectional", None, packed=False, biased=False)
WINDOW = MISTRAL._replace(window=64, span="bidirectional")


@pytest.mark.parametrize(
    ("case", "machine", "expected"),
    [
        (MISTRAL, CPU, "xla"),
        (MISTRAL, GPU, "cudnn"),
        (PACKED, GPU, "tokamax"),
        (PACKED, GPU._replace(tokamax=False), "xla"),
        (MISTRAL, GPU._replace(compute_capability=7.5), "xla"),
        (MISTRAL._replace(dtype="float32"), GPU, "tokamax"),
        (MISTRAL._replace(head_width=256), GPU, "tokamax"),
        (MISTRAL._replace(head_width=20), GPU, "tokamax"),
        (MISTRAL._replace(window=64), GPU, "cudnn"),
        (WINDOW, GPU, "tokamax"),
        (MINILM, GPU, "tokamax"),
        (MINILM._replace(dtype="bfloat16"), GPU, "cudnn"),
        (MISTRAL, Machine("rocm", 0.0, tokamax=True), "xla"),
        (MISTRAL, TPU, "splash"),
        (PACKED, TPU, "splash"),
        (MISTRAL._replace(head_width=64), TPU, "splash"),
        (MINILM, TPU, "xla"),
        (MISTRAL._replace(biased=True), GPU, "xla"),
        (MISTRAL._replace(biased=True), TPU, "xla"),
    ],
)
def test_auto_takes_the_fastest_that_can(case, machine, expected, caplog):
    with caplog.at_level(logging.INFO, logger="star_jax"):
        assert choose_backend("auto", case, machine) == expected
        assert choose_backend(expected, case, machine) == expected
    chosen, asked = caplog.messages
    assert chosen.startswith(f"attention by {expected}, chosen for {machine.platform}")
    assert asked == f"attention by {expected}, as attention_backend says"


def test_auto_says_what_the_faster_ones_lack(caplog):
    with caplog.at_level(logging.INFO, logger="star_jax"):
        choose_backend("auto", PACKED, GPU._replace(tokamax=False))
    assert caplog.messages == [
        "attention by xla, chosen for cuda; cudnn got rows of several texts, needed one text a "
        "row; tokamax got no tokamax, needed `pip install tokamax` on Python 3.12 or newer"
    ]


@pytest.mark.parametrize(
    ("asked", "case", "machine", "message"),
    [
        (
            "cudnn",
            PACKED,
            GPU,
            "cudnn got rows of several texts, needed one text a row; or choose auto, xla, tokamax",
        ),
        (
            "cudnn",
            MISTRAL._replace(dtype="float32"),
            GPU,
            "cudnn got compute_dtype float32, needed bfloat16; or choose auto, xla, tokamax",
        ),
        (
            "cudnn",
            MISTRAL._replace(head_width=160),
            GPU,
            "cudnn got heads of width 160, needed a multiple of 8 up to 128",
        ),
        (
            "cudnn",
            WINDOW,
            GPU,
            "cudnn got a window of 64 that looks ahead, needed pooling.attention=causal",
        ),
        (
            "cudnn",
            MISTRAL,
            GPU._replace(compute_capability=7.5),
            "cudnn got compute capability 7.5, needed 8.0 or newer; or choose auto, xla$",
        ),
        ("cudnn", MISTRAL, TPU, "got platform tpu, needed cuda; or choose auto, xla, splash$"),
        ("splash", MISTRAL, GPU, "splash got platform cuda, needed tpu"),
        ("splash", MINILM, TPU, "splash got heads of width 32, needed a multiple of 64"),
        ("splash", MISTRAL._replace(biased=True), TPU, "splash got a base with a bias by position"),
        (
            "tokamax",
            PACKED,
            GPU._replace(tokamax=False),
            "tokamax got no tokamax, needed `pip install tokamax` on Python 3.12 or newer; or "
            "choose auto, xla$",
        ),
        ("tokamax", PACKED, CPU, "tokamax got platform cpu, needed cuda; or choose auto, xla$"),
    ],
)
def test_what_cannot_be_done_is_one_line(asked, case, machine, message):
    with pytest.raises(InputError, match=f"^attention_backend .*{message}") as error:
        choose_backend(asked, case, machine)
    assert "\n" not in str(error.value)


def test_this_machine_is_the_cpu():
    machine = this_machine()
    assert machine[:2] == ("cpu", 0.0)
    assert jax.default_backend() == "cpu"


class Gpu:
    platform = "gpu"
    compute_capability = "9.0"

    def __init__(self, version):
        self.client = type("Client", (), {"platform_version": version})()


@pytest.mark.parametrize(
    ("version", "expected"), [("cuda 12090", ("cuda", 9.0)), ("rocm 60300", ("rocm", 0.0))]
)
def test_gpus_of_two_makers_are_told_apart(version, expected, monkeypatch):
    monkeypatch.setattr(attention_choice.jax, "devices", lambda: [Gpu(version)])
    assert this_machine()[:2] == expected


def case_of(monkeypatch, config, **options):
    """The case that a tower's config makes."""
    seen = []

    def choose(asked, case, machine):
        seen.append((asked, case))
        return "xla"

    monkeypatch.setattr(tower, "choose_backend", choose)
    build_tower(config, **options)
    ((asked, case),) = seen
    assert asked == config.attention_backend
    return case


def test_the_case_is_that_of_the_base(monkeypatch):
    limits = TokenLimits(job=40, profile=40, resume=40, other=40)
    bert = TowerConfig(base=str(FOLDER / "tiny_bert"), limits=limits)
    shape = build_tower(bert).shape
    expected = Case(shape.width // shape.num_heads, "float32", "bidirectional", None, True, False)
    assert case_of(monkeypatch, bert, packed=True) == expected


@pytest.mark.parametrize(("above", "window"), [(0, None), (1, "its own")])
def test_a_window_counts_where_a_text_is_longer(monkeypatch, above, window):
    config = TowerConfig(
        base=str(FOLDER / "tiny_mistral"),
        compute_dtype="bfloat16",
        pooling=PoolingConfig(attention="bidirectional"),
        limits=TokenLimits(job=4, profile=4, resume=4, other=4),
    )
    shape = build_tower(config).shape
    assert isinstance(shape, MistralShape)
    assert shape.sliding_window is not None
    limits = TokenLimits(job=4, profile=4, resume=4, other=shape.sliding_window + above)
    case = case_of(monkeypatch, TowerConfig(**{**vars(config), "limits": limits}))
    expected = shape.sliding_window if window else None
    assert case == Case(shape.head_width, "bfloat16", "bidirectional", expected, False, False)


def test_a_wrong_choice_ends_before_training():
    with pytest.raises(InputError, match="attention_backend splash got platform cpu, needed tpu"):
        build_tower(TowerConfig(base="random", attention_backend="splash"))


def test_parameters_need_no_kernel():
    model = build_tower(TowerConfig(base="random"))
    assert model.attention_backend == "xla"
    assert param_shapes(model.clone(attention_backend="cudnn")) == param_shapes(model)
