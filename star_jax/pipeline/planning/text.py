"""The programs of the text half, of shapes: the step of a training, the encoding of an export."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int32

from star_jax.parallel.mesh import num_row_shards
from star_jax.parallel.rules import batch_shardings, device_bytes, placed, shardings
from star_jax.pipeline.known_pairs import KnownPairs
from star_jax.pipeline.planning import memory
from star_jax.pipeline.text_counts import TextCounts
from star_jax.pipeline.text_encoding import make_encode
from star_jax.pipeline.text_loader import BatchBuilder
from star_jax.pipeline.text_model import TextModelConfig, initial_shapes
from star_jax.pipeline.text_pairs import PairRecords
from star_jax.pipeline.text_training import TextTrainConfig, make_text_step
from star_jax.text.attention_choice import Machine
from star_jax.text.bi_encoder import BiEncoder, TextBatch, row_axes
from star_jax.text.families import TokenLimits
from star_jax.text.flops import hardware_flops, model_flops
from star_jax.text.packing import Tokens
from star_jax.text.prompts import kind_number
from star_jax.text.tower import read_base, tower_rules
from star_jax.train.meter import Arithmetic, Counts
from star_jax.train.optimizers import make_optimizer
from star_jax.train.state import shapes_of_state


class TextStep(NamedTuple):
    """The update of a text training, ready to be compiled.

    Attributes:
      lower: Traces it.
      working: What a device holds beside the arguments, estimated: name -> bytes. Empty where
        `lower` is of the machine itself.
      counts: Tokens and operations of one batch, of all devices.
      trainable: Bytes of a device, like the two below.
      frozen: Of the base.
      optimizer: Its state.
      attention: Which kernel.
    """

    lower: Callable[[], jax.stages.Lowered]
    working: dict[str, int]
    counts: Counts
    trainable: int
    frozen: int
    optimizer: int
    attention: str


class LongestTexts:
    """Texts as long as the limits allow: what a plan without data assumes. It has no tokens."""

    def __init__(self, limits: TokenLimits, num_groups: int, group_size: int) -> None:
        """As many as a batch has, each once.

        Args:
          limits: Of the base and the config, none left open.
          num_groups: Groups: a sender with a profile and a resume.
          group_size: Receivers of each.
        """
        counts = {"job": num_groups * group_size, "profile": num_groups, "resume": num_groups}
        self.kinds = np.repeat([kind_number(kind) for kind in counts], list(counts.values()))
        self.lengths = np.repeat([limits.of(kind) for kind in counts], list(counts.values()))
        self.kinds, self.lengths = self.kinds.astype(np.int32), self.lengths.astype(np.int32)
        self.prompts = np.zeros_like(self.lengths)
        self.pad_id = 0

    def read(self, records: Sequence[int]) -> list[Int32[np.ndarray, " L"]]:
        """Zeros."""
        return [np.zeros(self.lengths[record], np.int32) for record in records]


def longest_batch(config: TextTrainConfig, num_shards: int) -> TextBatch:
    """A batch whose texts are all as long as the limits allow.

    Args:
      config: Of the training.
      num_shards: Parts of its rows on the mesh.
    """
    shape, size = config.batch_shape(num_shards), config.group_size
    num_groups = shape.num_groups * shape.num_microbatches
    group = np.repeat(np.arange(num_groups, dtype=np.int32), size)
    receiver = np.arange(num_groups * size, dtype=np.int32)
    within = receiver % size
    profile = len(receiver) + group
    pairs = PairRecords(
        sender=group,
        receiver=receiver,
        label=(within == 0).astype(np.int32),
        group=group,
        document=receiver,
        profile=profile,
        resume=profile + num_groups,
        hard=within > config.num_negatives,
        teacher=np.full(len(group), 0.0 if config.teacher else np.nan, np.float32),
    )
    texts = LongestTexts(read_base(config.tower).limits, num_groups, size)
    known = KnownPairs(np.stack([group, receiver], axis=1)[within == 0].astype(np.int64))
    builder = BatchBuilder(pairs, texts, shape, known=known, seed=0)
    return builder(0, np.arange(num_groups))


def text_step(
    config: TextTrainConfig,
    model_config: TextModelConfig,
    mesh: Mesh,
    machine: Machine,
    batch: TextBatch,
) -> TextStep:
    """Lowers the update that `train-text` would run.

    Args:
      config: Of the training.
      model_config: What it trains.
      mesh: Devices that need not be there.
      machine: What they are.
      batch: On the host.
    """
    built = model_config.build(packed=config.pack_length is not None, machine=machine)
    model = _lowered_here(built)
    trainable, frozen = initial_shapes(model_config, model)
    optimizer = make_optimizer(config.optimizer)
    state = shapes_of_state(trainable, optimizer, mesh=mesh, rules=model_config.rules(model))
    base = placed(frozen, shardings(frozen, mesh, tower_rules(model.tower, base=True)))
    where = batch_shardings(batch, mesh, axis=row_axes(batch))
    step = make_text_step(model, optimizer, state, mesh, config.batch_shape(num_row_shards(mesh)))
    working = {}
    if machine.platform == "cuda":
        held = device_bytes(state.trainable)
        working = memory.training_bytes(model_config, built, batch, mesh, held)
    return TextStep(
        lower=lambda: step.lower(state, base, placed(batch, where)),
        working=working,
        counts=TextCounts(model, config.mode)(batch),
        trainable=device_bytes(state.trainable),
        frozen=device_bytes(base),
        optimizer=device_bytes(state.opt_state),
        attention=built.tower.attention_backend,
    )


def _lowered_here(model: BiEncoder) -> BiEncoder:
    """The model with attention that can be lowered; kernels of GPUs cannot."""
    if model.tower.attention_backend not in ("cudnn", "tokamax"):
        return model
    return replace(model, tower=model.tower.clone(attention_backend="xla"))


def text_export(
    model_config: TextModelConfig, mesh: Mesh, machine: Machine, *, tokens: int, length: int
) -> TextStep:
    """Lowers the encoding that `export-text` would run of texts of one length.

    Args:
      model_config: What encodes.
      mesh: As in `text_step`, like the next one.
      machine: What they are.
      tokens: Of a batch, on one device.
      length: Of each text.
    """
    built = model_config.build(machine=machine)
    model = _lowered_here(built)
    split = initial_shapes(model_config, model)
    rules = tower_rules(model.tower, base=True)
    variables = placed(split.frozen, shardings(split.frozen, mesh, rules))
    rules = model_config.rules(model)
    variables |= placed(split.trainable, shardings(split.trainable, mesh, rules))
    rows = num_row_shards(mesh) * max(1, tokens // length)
    narrow = np.zeros((rows, 1), np.int32)
    arrays: Any = (np.zeros((rows, length), np.int32), narrow + length, narrow, narrow)
    texts = Tokens(*arrays)
    batch = placed(texts, batch_shardings(texts, mesh))

    def lower() -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return make_encode(model).lower(variables, batch)

    lengths = np.full(rows, length)
    shape, span = model.tower.shape, model.tower.pooling.attention
    assert span is not None
    arithmetic = Arithmetic(
        model_flops(shape, "frozen", lengths, span),
        hardware_flops(shape, "frozen", lengths, "none", cached=False),
    )
    counts = Counts(rows * length, rows * length, arithmetic)
    working = {}
    if machine.platform == "cuda":
        working = memory.encoding_bytes(model_config, built, texts, mesh)
    read = {name: tree for name, tree in variables.items() if name != "scorer"}
    held, backend = device_bytes(read), built.tower.attention_backend
    return TextStep(lower, working, counts, 0, held, 0, backend)
