"""The command line: `star COMMAND CONFIG --workdir DIR [--a.b value ...]`; all that prints."""

import argparse
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from rich.console import Console
from rich.logging import RichHandler

from star_jax.arguments import make_parser
from star_jax.commands import COMMANDS, GROUPS, READING
from star_jax.config import InputError, fields, load_config, override
from star_jax.jobs import TOGETHER
from star_jax.pipeline.columns import columns
from star_jax.train.stopping import Stopped


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (InputError, OSError, FloatingPointError) as error:  # The last: training diverged.
        print(f"star: error: {_one_line(error)}", file=sys.stderr)
        return _ended(2)
    except Stopped as stopped:
        print(f"star: {_one_line(stopped)}; the same command goes on from there", file=sys.stderr)
        processes = _together()
        alone = processes is not None and processes.is_alone()  # The others are not stopped.
        return _ended(stopped.exit_code) if alone else stopped.exit_code
    except KeyboardInterrupt:
        print("star: interrupted; the same command goes on from here", file=sys.stderr)
        return _ended(130)
    except Exception:
        if processes := _together():
            traceback.print_exc()  # Now: the verdict may end this process.
            processes.await_verdict()
            processes.leave(1)
        raise


def _together() -> Any:
    """The module `processes` where this is one of several; only commands that join import it."""
    processes = sys.modules.get("star_jax.parallel.processes")
    return processes if processes is not None and processes.joined() else None


def _ended(code: int) -> int:
    """The exit code; a process of several ends here, or it would wait for the others."""
    if processes := _together():
        processes.leave(code)
    return code


def _run(argv: list[str]) -> int:
    parser = make_parser()
    if argv and argv[0] in (*GROUPS, *READING):
        return _run_action(*parser.parse_known_args(argv))
    if argv[:1] == ["plan"]:
        return _run_plan(*parser.parse_known_args(argv))
    wants_help = any(arg in ("-h", "--help") for arg in argv[2:])
    known = [arg for i, arg in enumerate(argv) if i < 2 or arg not in ("-h", "--help")]
    args, overrides = parser.parse_known_args(known)
    if wants_help:
        config = override(load_config(args.config), overrides)
        print(f"fields of {args.config}, each an option of `star {args.command}`:\n")
        for path, value in fields(config).items():
            print(f"  --{path} {_shown(value)}")
        return 0
    needed = COMMANDS[args.command].named_options()
    for name, required in needed.items():
        if required and getattr(args, name) is None:
            raise InputError(f"--{name} is missing; see `star {args.command} --help`")
    if "workdir" in needed:
        _keep_compiled(args.workdir)
    config = override(load_config(args.config), overrides)
    _log_to_terminal()
    _join(args)
    job = importlib.import_module(f"star_jax.jobs.{COMMANDS[args.command].module}")
    part = _part(config, get_type_hints(job.run)["config"], args)
    given = {name: getattr(args, name) for name in needed}
    processes = _together()
    if processes and COMMANDS[args.command].module not in (*TOGETHER, "run"):
        found = processes.by_the_first(lambda: job.run(part, **given))
    else:
        found = job.run(part, **given)
    if processes:
        processes.wait("done")  # None ends before the others: the first one holds them together.
    speaks = not processes or processes.is_first()
    if args.command in ("report", "run") and speaks:
        _print_results(args.workdir)
    return 0 if found is None else _print_contract(found, speaks)


def _join(args: argparse.Namespace) -> None:
    """Meets the other processes, if there are any; the first one speaks for all."""
    given = {name: getattr(args, name) for name in ("num_processes", "process_id")}
    if args.coordinator is None:
        if any(value is not None for value in given.values()):
            raise InputError("--num-processes and --process-id need --coordinator")
        return
    processes = importlib.import_module("star_jax.parallel.processes")
    processes.join(processes.Joined(coordinator=args.coordinator, **given))
    if not processes.is_first():
        logging.getLogger("star_jax").setLevel(logging.WARNING)


def _run_action(args: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the lines that the job returns or yields, as they come."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    command, action = given.pop("command"), given.pop("action", None)
    job = importlib.import_module(f"star_jax.jobs.{command}")
    do = job.versions if action == "list" else getattr(job, action or "run")
    if "config" in given:
        config = override(load_config(args.config), overrides)
        given["config"] = _part(config, get_type_hints(do)["config"], args)
    elif overrides:
        told = " ".join(filter(None, ("star", command, action)))
        raise InputError(f"{overrides[0]} is unknown; see `{told} --help`")
    for line in do(**given):
        print(line, flush=True)
    return 0


def _run_plan(args: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the plan; 1 where something does not fit."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # The machine that is planned for is not here.
    config = override(load_config(args.config), overrides)
    _log_to_terminal()
    job = importlib.import_module("star_jax.jobs.plan")
    fits = job.run(config, args.topology, print, workdir=args.workdir, num_pairs=args.num_pairs)
    return 0 if fits else 1


def _part(config: Any, needed: type, args: argparse.Namespace) -> Any:
    """The config itself, or the field of it that is the command's own config."""
    if isinstance(config, needed):
        return config
    parts = [getattr(config, field.name) for field in dataclasses.fields(config)]
    own = [part for part in parts if isinstance(part, needed)]
    if not own:
        raise InputError(
            f"config {args.config} returns {type(config).__name__}, "
            f"needed {needed.__name__} by `star {args.command}`"
        )
    return own[0]


def _log_to_terminal() -> None:
    """Colours and short times on a terminal; whole lines in a file. Replaces libraries' own."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%X"))
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%X")
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("star_jax").setLevel(logging.INFO)


def _keep_compiled(workdir: Path) -> None:
    """What XLA compiles serves every later command on the folder; a cache already set stays.

    JAX reads the variable when it is imported, which a command does not do before it needs it.
    XLA warns that code for another CPU can end a process with SIGILL
    (https://github.com/jax-ml/jax/issues/38445): each kind of CPU has a folder of its own.
    """
    folder = workdir.absolute() / "compiled" / _cpu()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))


def _cpu() -> str:
    """Names what this machine's CPU can do."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    digest = hashlib.sha256("\n".join([platform.processor(), *kinds]).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def _print_results(workdir: Path) -> None:
    """Metrics beside the references, seconds by stage, and the path of the metrics."""
    path = workdir / "report" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    columns = metrics["models"] | metrics["references"]
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [
        [name, *(_figure(column.get(name)) for column in columns.values())]
        for name in names
        if any(isinstance(column.get(name), float) for column in columns.values())
    ]
    print(f"\n{metrics['dataset']}, test split\n")
    _print_table([["metric", *columns], *rows])
    # Not before it is needed: `star --help` must not wait for plotting and arrays.
    stages = importlib.import_module("star_jax.pipeline.report.content").read_stages(workdir)
    if stages:
        print()
        _print_table([["stage", "seconds"], *([s.name, f"{s.seconds:.1f}"] for s in stages)])
    print(f"\n{(workdir / 'report' / 'index.html').resolve()}")
    print(path.resolve())


def _print_contract(contract: dict[str, Any], speaks: bool) -> int:
    """All tables, then the limits that are broken; the exit code: 1 where there is one."""
    if speaks:
        for title, rows in contract["tables"].items():
            print(f"\n{title}")
            _print_table(rows)
        print("\n" + ("\n".join(map("broken: {}".format, contract["breaks"])) or "all limits hold"))
    return 1 if contract["breaks"] else 0


def _print_table(rows: list[list[str]]) -> None:
    print("\n".join(columns(rows)))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value)
    return str(value)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split())
