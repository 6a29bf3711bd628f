"""What `star` can do: each command with what it reads, what it writes, and its help."""

from typing import NamedTuple


class Command(NamedTuple):
    """One subcommand: the job module that does it and what it says about itself."""

    module: str
    reads: str
    writes: str
    help: str
    options: str = "--workdir"  # Words for `run` beside config; in brackets: None without them.

    def named_options(self) -> dict[str, bool]:
        """Name -> whether it must be given."""
        return {word.strip("[]-"): word[0] != "[" for word in self.options.split()}


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
        "graph_embeddings/, and transform/ of a model trained with maps",
        "write a vector for every node",
    ),
    "fit-transform": Command(
        "fit_transform",
        "two versions of text or graph embeddings",
        "the folder of --output",
        "fit a map of new embeddings to the space of old ones",
        "--old --new [--registry] --output",
    ),
    "evaluate": Command(
        "evaluate", "all of the above", "evaluation/", "score the fixed pairs with every model"
    ),
    "check-consumers": Command(
        "check_consumers",
        "tables/, and two versions of embeddings",
        "the folder of --output",
        "score frozen consumers of old embeddings on new ones; fail beyond limits",
        "--workdir --old --new [--transform] [--registry] --output",
    ),
    "release": Command(
        "release",
        "tables/, and a registry",
        "release/, and the registry",
        "make a new version active, with maps and contracts for the consumers of old ones",
        "--workdir --new --registry",
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

OPTIONS = {  # Those of `Command.options`.
    "workdir": "folder of all artefacts",
    "old": "embeddings that consumers were trained on: a folder, or NAME@VERSION of the registry",
    "new": "embeddings that are to take their place",
    "transform": "what maps the new ones to the old ones' space",
    "registry": "path or URL of the registry that names are of",
    "output": "folder to write",
}


class Action(NamedTuple):
    """What a command of several does: arguments as `NAME=kind`, optional ones in brackets."""

    arguments: str  # Kinds: path, text, number, flag, or a|b for one of some words.
    help: str


BRANCH = {  # What `star branch` does.
    "init": Action(
        "--workdir=path --owner=text --output=path", "write the signals of all that was imported"
    ),
    "diff": Action("A=path B=path", "print which signals B adds, removes and changes"),
    "merge": Action(
        "BASE=path A=path B=path --output=path",
        "write the union of two branches, or name their conflicts",
    ),
    "ablate": Action(
        "SIGNALS=path --output=path", "write the signals without each of them, into a folder"
    ),
    "report": Action(
        "SIGNALS=path --workdir=path --runs=path --output=path",
        "write what runs without each signal lose, of those that are there",
    ),
    "cost": Action(
        "SIGNALS=path CONFIG=path --workdir=path",
        "print bytes, parameters and edges of each signal",
    ),
}

REGISTRY = {  # What `star registry` does.
    "add": Action(
        "--name=text [--workdir=path] [--artefact=path] [--code=text] [--ablation=path]",
        "add the embeddings and models of a run, or one artefact, as next versions",
    ),
    "attach": Action("REF=text --ablation=path", "store an ablation report with a version"),
    "list": Action("[NAME=text]", "list versions, and consumers that are not served"),
    "show": Action("REF=text", "print what is known of a version"),
    "diff": Action("A=text B=text", "print what two versions differ in"),
    "log": Action("", "print all that happened"),
    "promote": Action(
        "REF=text [--force=flag] [--reason=text] [--max-chain=number]",
        "make a version active; what was becomes deprecated",
    ),
    "deprecate": Action(
        "REF=text [--reason=text] [--max-chain=number]", "mark a candidate as not to be used"
    ),
    "retire": Action(
        "REF=text [--delete-vectors=flag] [--force=flag] [--reason=text] [--max-chain=number]",
        "end a deprecated version; its record stays",
    ),
    "alias": Action("REF=text ALIAS=text", "name a version, or move the name to it"),
    "unalias": Action("NAME=text ALIAS=text", "take such a name away"),
    "consumer": Action(
        "WHAT=add|remove|list [CONSUMER=text] [REF=text] [--owner=text]",
        "say what was trained on a version: add CONSUMER REF, remove CONSUMER NAME, list",
    ),
    "chain": Action(
        "NEW=text OLD=text [--output=path] [--max-chain=number]",
        "print the transforms from one to another; write them as one",
    ),
    "verify": Action("[REF=text]", "read everything again, to the last byte"),
    "mlflow": Action(
        "REF=text --tracking-uri=text [--experiment=text]",
        "log a version as a run and a registered model of MLflow",
    ),
}

GROUPS = {  # Command -> its help, its actions, and arguments of all of them.
    "branch": ("compare, merge, ablate and weigh the signals of a graph", BRANCH, ""),
    "registry": (
        "versions of embeddings and models, their states and consumers",
        REGISTRY,
        "--registry=text",
    ),
}

READING = {  # Commands that hand out embeddings; the job is named like the command.
    "get": Action(
        "REF=text --node-type=text [--ids=text] [--ids-file=path] [--as-of=number] "
        "[--registry=text] [--as-version=text] [--output=path]",
        "print or write the embeddings of some ids",
    ),
    "publish": Action(
        "REF=text --output=text [--node-type=text] [--as-of=number] [--all-times=flag] "
        "[--registry=text] [--as-version=text] [--dtype=float32|float16] "
        "[--format=parquet|arrayrecord] [--partitions=number] [--ttl-s=number]",
        "write whole tables of embeddings: partitioned files, LMDB, Redis",
    ),
}

READING_OPTIONS = {
    "REF": "folder of embeddings; or NAME@NUMBER, NAME@ALIAS, NAME of the registry",
    "--node-type": "name of the table; of `publish`: all tables without it",
    "--ids": "ids, separated by commas",
    "--ids-file": "file with an id per line",
    "--as-of": "the last row of an id that is not younger, in the unit of the table's times",
    "--all-times": "every row of an id, each with the time from which on it holds",
    "--registry": "path or URL of the registry that versions are in",
    "--as-version": "older version, or folder of a transform, that the vectors are mapped to",
    "--output": "of `get`: FILE.npy, .parquet, .array_record; of `publish`: a folder, lmdb:FOLDER, "
    "redis://HOST:PORT/DB",
    "--dtype": "of the numbers (float32)",
    "--format": "of the files (parquet)",
    "--partitions": "files per table (16); an id is in the one that its SHA-256 names",
    "--ttl-s": "seconds until a store forgets what is written now (never)",
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
a single command takes its own part of it. Exit code 2: what was given is wrong, in one line; 1: a
plan does not fit, or a contract is broken.
Training that gets SIGTERM or Ctrl-C ends its step, saves it and exits with 143 or 130; the same
command goes on from there. A second signal ends it at once.
"""
