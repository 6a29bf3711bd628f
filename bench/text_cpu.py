"""Training and bulk export on CPU cores, against sentence-transformers and PEFT in torch.

Run (needs requirements-interop.txt, and the real data set seqa):
    PYTHONPATH=. python bench/text_cpu.py DATA_DIR > bench/results/text_cpu.md

Both sides read the same texts with the same model (all-MiniLM-L6-v2, float32, texts of up to 256
tokens), each in processes of its own that take turns. A training step is 32 positives of seqa,
each with one negative of its own: profile, job, negative job. Ours is the step of `star
train-text` with its batches; theirs is MultipleNegativesRankingLoss over the same three columns
and AdamW over the same adapters (PEFT, rank 8 on query, key and value, dropout 0.1), without a
trainer around it. Export is `BulkEncoder`, that of `star export-text`, against
`SentenceTransformer.encode`; the vectors of both are compared first. Compiling is timed apart, as
it is done once for a run of any length. Exit code 1: a bar is missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from star_jax.jobs import import_tables
from star_jax.jobs.import_tables import ImportConfig
from star_jax.jobs.train_text import TextTrainConfig
from star_jax.parallel.mesh import MeshConfig, make_mesh
from star_jax.parallel.rules import FSDP_RULES
from star_jax.pipeline.known_pairs import KnownPairs, known_positives
from star_jax.pipeline.tables.read import read_meta, read_pairs, read_texts
from star_jax.pipeline.text_encoding import BulkEncoder, bulk_lengths
from star_jax.pipeline.text_loader import BatchBuilder, make_batches
from star_jax.pipeline.text_model import initial
from star_jax.pipeline.text_pairs import pair_records, with_both_sides
from star_jax.pipeline.text_records import text_records
from star_jax.text.bi_encoder import make_loss, row_axes
from star_jax.text.families import TokenLimits
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.prompts import clean
from star_jax.text.tower import TowerConfig, build_tokenizer, read_base
from star_jax.train.optimizers import OptimizerConfig, make_optimizer
from star_jax.train.state import create_state
from star_jax.train.step import make_step

LEAST_TRAINING, LEAST_EXPORT = 1.0, 1.3  # Times the speed of torch.
NUM_POSITIVES, NUM_STEPS, NUM_TEXTS, ROUNDS = 32, 4, 400, 1
LENGTH = 256
LIMITS = TokenLimits(job=LENGTH, profile=LENGTH, resume=LENGTH, other=LENGTH)
CONFIG = TextTrainConfig(
    tower=TowerConfig(base="minilm", limits=LIMITS),
    objective=ObjectiveConfig(contrastive="infonce"),
    optimizer=OptimizerConfig(),
    mesh=MeshConfig(data=1),
    batch_size=2 * NUM_POSITIVES,
    microbatch_size=2 * NUM_POSITIVES,
)
RATE = 1e-4


class Found(NamedTuple):
    """What one process measured."""

    positives_per_s: float
    texts_per_s: float
    compile_s: float
    padding: float  # Share of the exported tokens.


def star(workdir: Path) -> Found:
    """Our side."""
    tables, mesh = workdir / "tables", make_mesh(CONFIG.mesh)
    name, task = next(iter(read_meta(tables).tasks.items()))
    records = text_records(workdir, build_tokenizer(CONFIG.tower))
    table = read_pairs(tables, name, "train")
    pairs = pair_records(table, records, sender=task.sender, receiver=task.receiver)
    known = KnownPairs(known_positives(tables, read_meta(tables), task, table))
    shape = CONFIG.batch_shape(1)
    builder = BatchBuilder(with_both_sides(pairs), records, shape, known=known, seed=0)
    batches = make_batches(builder, shape, seed=0)
    model_config = CONFIG.model(task)
    model = model_config.build()
    trainable, frozen = initial(model_config, model, 0, mesh)
    chosen = _chosen(records)
    encoder = BulkEncoder(
        model,
        records,
        mesh,
        lengths=bulk_lengths(records.lengths[chosen], 8),
        batch_tokens=None,
    )
    variables = {**frozen, **trainable}
    encoder(variables, chosen, lambda *_: None)  # Compiles.
    begun = time.monotonic()
    vectors = encoder(variables, chosen, lambda *_: None)
    export = time.monotonic() - begun
    np.save(workdir / "star.npy", vectors)

    optimizer = make_optimizer(CONFIG.optimizer)
    state = create_state(trainable, optimizer, seed=0, mesh=mesh, rules=FSDP_RULES)
    step = make_step(make_loss(model), optimizer, state=state, mesh=mesh, row_axes=row_axes)
    position, compile_s = batches.get_state(), -time.monotonic()
    for _ in range(NUM_STEPS):  # All shapes.
        state, _ = step(state, frozen, step.place(next(batches)), RATE)
    jax.block_until_ready(state)
    compile_s += time.monotonic()
    batches.set_state(position)
    begun = time.monotonic()
    for _ in range(NUM_STEPS):
        state, _ = step(state, frozen, step.place(next(batches)), RATE)
    jax.block_until_ready(state)
    training = time.monotonic() - begun

    padding = 1.0 - encoder.counts.num_tokens / encoder.counts.num_slots
    return Found(
        NUM_STEPS * NUM_POSITIVES / training,
        len(chosen) / export,
        compile_s - training,
        padding,
    )


def torch(workdir: Path) -> Found:
    """Their side."""
    import torch  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    from sentence_transformers.sentence_transformer import (  # pyright: ignore[reportMissingImports]
        losses,
    )

    torch.manual_seed(0)
    tables = workdir / "tables"
    model: Any = SentenceTransformer(str(read_base(CONFIG.tower).folder), device="cpu")
    model.max_seq_length = LENGTH
    texts = json.loads((workdir / "texts.json").read_text(encoding="utf-8"))
    model.encode(texts[:64])
    begun = time.monotonic()
    vectors = model.encode(texts, batch_size=32, show_progress_bar=False, normalize_embeddings=True)
    export = time.monotonic() - begun
    np.save(workdir / "torch.npy", vectors)

    columns = _columns(tables)
    adapters = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["query", "key", "value"]
    )
    model[0].auto_model = get_peft_model(model[0].auto_model, adapters)
    model.train()
    loss = losses.MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    order = np.random.default_rng(0).permutation(len(columns))

    def train(steps: int) -> None:
        for number in range(steps):
            rows = [columns[i] for i in order[number * NUM_POSITIVES :][:NUM_POSITIVES]]
            features = [model.tokenize(list(column)) for column in zip(*rows, strict=True)]
            value = loss(features, None)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    train(2)
    begun = time.monotonic()
    train(NUM_STEPS)
    training = time.monotonic() - begun
    return Found(NUM_STEPS * NUM_POSITIVES / training, len(texts) / export, 0.0, float("nan"))


def _chosen(records: Any) -> np.ndarray:
    return np.random.default_rng(0).permutation(len(records))[:NUM_TEXTS]


def _columns(tables: Path) -> list[tuple[str, str, str]]:
    """Profile, job and negative job of every training positive that has all three."""
    name, task = next(iter(read_meta(tables).tasks.items()))
    pairs = read_pairs(tables, name, "train")
    members, jobs = (read_texts(tables, end).text for end in (task.sender, task.receiver))
    negative = {
        int(group): int(text)
        for group, text, label in zip(pairs.group, pairs.receiver_text, pairs.label, strict=True)
        if label == 0 and text >= 0
    }
    return [
        (clean(members[sender]), clean(jobs[receiver]), clean(jobs[negative[group]]))
        for group, sender, receiver, label in zip(
            pairs.group.tolist(),
            pairs.sender_text.tolist(),
            pairs.receiver_text.tolist(),
            pairs.label.tolist(),
            strict=True,
        )
        if label == 1 and sender >= 0 and receiver >= 0 and group in negative
    ]


def _texts(workdir: Path) -> list[str]:
    """The texts that our side exports, as strings."""
    records = text_records(workdir, build_tokenizer(CONFIG.tower))
    of_record = {}
    for node_type in read_meta(workdir / "tables").node_types:
        texts = read_texts(workdir / "tables", node_type)
        rows = records.of(node_type, np.arange(len(texts.text), dtype=np.int32))
        of_record |= dict(zip(rows.tolist(), texts.text, strict=True))
    return [clean(of_record[record]) for record in _chosen(records).tolist()]


def _measure(side: str, workdir: Path) -> Found:
    command = [sys.executable, __file__, str(workdir), "--side", side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Found(*json.loads(done.stdout.splitlines()[-1]))


def _report(found: dict[str, list[Found]], difference: float) -> bool:
    """Prints the table; returns whether all bars are met."""
    print(f"""# Training and export on two CPU cores, against torch

    PYTHONPATH=. python bench/text_cpu.py DATA_DIR > bench/results/text_cpu.md

seqa, all-MiniLM-L6-v2 in float32, texts of up to {LENGTH} tokens; {NUM_STEPS} steps of
{NUM_POSITIVES} positives with a negative each, {NUM_TEXTS} texts exported; {ROUNDS} round(s) in
turns, the median. Largest difference of the vectors: {difference:.1e}.

| | star_jax | sentence-transformers + PEFT | ratio | bar |
|---|---|---|---|---|""")
    met = True
    for name, field, least in (
        ("training, positives/s", "positives_per_s", LEAST_TRAINING),
        ("export, texts/s", "texts_per_s", LEAST_EXPORT),
    ):
        ours, theirs = (
            float(np.median([getattr(each, field) for each in found[s]])) for s in found
        )
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | {least} |")
        met &= ours / theirs >= least
    first = found["star"][0]
    print(f"\nCompiling the training step took {first.compile_s:.0f} s of each of our processes;")
    print(f"{100 * first.padding:.1f} % of the exported tokens were padding.")
    print(f"\n{'All bars are met.' if met else 'A bar is missed.'}")
    return met


def main() -> int:
    """Measures both sides in turns."""
    parser = argparse.ArgumentParser(description="Training and export on CPU cores.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", choices=("star", "torch"))
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps({"star": star, "torch": torch}[options.side](options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch)
        import_tables.run(ImportConfig(source=options.folder), workdir)
        (workdir / "texts.json").write_text(json.dumps(_texts(workdir)), encoding="utf-8")
        found: dict[str, list[Found]] = {"star": [], "torch": []}
        for _ in range(ROUNDS):
            for side, rows in found.items():
                rows.append(_measure(side, workdir))
        ours, theirs = (np.load(workdir / f"{side}.npy") for side in found)
        difference = float(np.abs(ours - theirs).max())
    return 0 if _report(found, difference) and difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
