"""What `star` can do: each command with what it reads, what it writes, and its help."""

from typing import NamedTuple


class Command(NamedTuple):
    """One subcommand: the job module that does it and what it says about itself."""

    module: str
    reads: str
    writes: str
    help: str


COMMANDS = {
    "import": Command(
        "import_tables", "your tables", "tables/", "check the input tables and bring them in"
    ),
    "draw-market": Command(
        "draw_market",
        "nothing",
        "tables/ text_embeddings/",
        "draw a synthetic market of any size, with vectors in the place of texts",
    ),
    "train-text": Command(
        "train_text",
        "tables/, and hard_negatives/ if asked for",
        "text/",
        "train the text towers and scorer",
    ),
    "export-text": Command(
        "export_text", "tables/ text/", "text_embeddings/", "write a vector for every text"
    ),
    "export-model": Command(
        "export_model",
        "tables/ text/",
        "model_export/",
        "write the text model for PEFT, transformers, sentence-transformers; verified",
    ),
    "mine-negatives": Command(
        "mine_negatives",
        "tables/ text/ text_embeddings/",
        "hard_negatives/",
        "find hard negatives for another training",
    ),
    "build-graph": Command("build_graph", "tables/", "graph/", "build the memory-mapped graph"),
    "append-edges": Command(
        "append_edges",
        "graph/, and what is new in the form of tables/",
        "graph/",
        "add edges, nodes and texts to the graph: its next version",
    ),
    "audit-leaks": Command(
        "audit_leaks",
        "tables/ graph/ text_embeddings/",
        "leaks/",
        "plant what training may not see; fail if it reaches a loss",
    ),
    "train-graph": Command(
        "train_graph",
        "tables/ graph/ text_embeddings/",
        "graph_model/",
        "train the graph encoder and decoders",
    ),
    "export-graph": Command(
        "export_graph",
        "tables/ graph/ text_embeddings/ graph_model/",
        "graph_embeddings/",
        "write a vector for every node",
    ),
    "evaluate": Command(
        "evaluate", "all of the above", "evaluation/", "score the fixed pairs with every model"
    ),
    "report": Command(
        "report", "evaluation/", "report/", "write metrics.json and a page with figures"
    ),
    "run": Command(
        "run",
        "your tables",
        "all of the above",
        "all stages in order: unchanged ones are skipped, an interrupted one is resumed",
    ),
}

BRANCH = {  # What `star branch` does, with its options: all of them are paths but the owner.
    "init": ("--workdir --owner --output", "write the signals of all that was imported"),
    "diff": ("A B", "print which signals B adds, removes and changes"),
    "merge": ("BASE A B --output", "write the union of two branches, or name their conflicts"),
    "ablate": ("SIGNALS --output", "write the signals without each of them, into a folder"),
    "cost": ("SIGNALS CONFIG --workdir", "print bytes, parameters and edges of each signal"),
}

PLAN = "say whether a config fits chips that are not here, and how long it takes"

EPILOG = """\
examples:
  star run configs/run/quickstart.py --workdir runs/market
  star run configs/run/quickstart.py --workdir runs/mine --tables.source data/mine
  star train-text configs/text/tiny.py --workdir runs/market --plan.num_steps 20

  star COMMAND --help          what a command reads and writes
  star COMMAND CONFIG --help   every field of that config with its value

CONFIG is a Python file whose get_config() returns the config. Given the config of a whole run,
a single command takes its own part of it. Exit code 2: what was given is wrong, in one line.
Training that gets SIGTERM or Ctrl-C ends its step, saves it and exits with 143 or 130; the same
command goes on from there. A second signal ends it at once.
"""
