"""The parser of `star`: its commands and their options, as `star_jax.commands` lists them."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from star_jax import __version__
from star_jax.commands import (
    COMMANDS,
    EPILOG,
    GROUPS,
    OPTIONS,
    PLAN,
    READING,
    READING_OPTIONS,
    Action,
)
from star_jax.config import InputError


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; overrides of a config are left for `parse_known_args`."""
    helps = {name: command.help for name, command in COMMANDS.items()}
    helps["plan"] = PLAN
    helps |= {name: about for name, (about, _, _) in GROUPS.items()}
    helps |= {name: action.help for name, action in READING.items()}
    listed = "\n".join(f"  {name:<16}{text}" for name, text in helps.items())
    parser = _Parser(
        prog="star",
        description="Text and graph embeddings of a two-sided marketplace, from tables to report.",
        usage="star COMMAND CONFIG --workdir DIR [--a.b value ...]",
        epilog=f"commands:\n{listed}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"star_jax {__version__}")
    subparsers = parser.add_subparsers(
        dest="command", prog="star", metavar="COMMAND", required=True, help="one of those below"
    )
    for name, (about, actions, common) in GROUPS.items():
        _add_group(subparsers, name, about, actions, common)
    _add_plan(subparsers)
    for name, action in READING.items():
        sub = subparsers.add_parser(name, description=_sentence(action.help), allow_abbrev=False)
        _add_arguments(sub, action.arguments, READING_OPTIONS)
    for name, command in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            usage=f"star {name} CONFIG {command.options} [--a.b value ...]",
            description=f"{_sentence(command.help)}\n\n"
            f"reads   {command.reads}\nwrites  {command.writes}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument(
            "config", metavar="CONFIG", type=Path, help="Python file with get_config()"
        )
        for option in command.named_options():
            kind = {"metavar": "DIR", "type": Path} if option == "workdir" else {}
            sub.add_argument(f"--{option}", help=OPTIONS[option], **kind)
        _add_processes(sub)
        sub.add_argument_group(
            "overrides",
            "--a.b value sets the field b of the group a; `--help` after CONFIG lists them all",
        )
    return parser


def _add_plan(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        usage="star plan CONFIG --topology T [--workdir DIR] [--num-pairs N] [--a.b value ...]",
        description=_sentence(PLAN),
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="Python file with get_config()")
    parser.add_argument(
        "--topology", required=True, help="chips to plan for: v5e:4x4, v5p:4x4x4, h200:8"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", type=Path, help="whose tables; else texts are the longest"
    )
    parser.add_argument("--num-pairs", metavar="N", type=int, help="training pairs, without tables")


def _add_group(
    subparsers: Any, command: str, about: str, actions: Mapping[str, Action], common: str
) -> None:
    parser = subparsers.add_parser(
        command,
        usage=f"star {command} ACTION ...",
        description=_sentence(about),
        allow_abbrev=False,
    )
    each = parser.add_subparsers(
        dest="action", prog=f"star {command}", metavar="ACTION", required=True
    )
    for name, action in actions.items():
        about = _sentence(action.help)
        sub = each.add_parser(name, help=action.help, description=about, allow_abbrev=False)
        _add_arguments(sub, f"{action.arguments} {common}")


def _add_arguments(
    parser: argparse.ArgumentParser, arguments: str, helps: Mapping[str, str] | None = None
) -> None:
    """As `Action` writes them."""
    kinds = {"path": Path, "text": str, "number": int}
    for argument in arguments.split():
        optional = argument.startswith("[")
        name, _, kind = argument.strip("[]").partition("=")
        options: dict[str, Any] = {"type": kinds[kind]} if kind in kinds else {}
        about = None if helps is None else helps[name]
        if "|" in kind:
            options["choices"] = kind.split("|")
        if kind == "flag":
            parser.add_argument(name, action="store_true", help=about)
        elif name.startswith("--"):
            parser.add_argument(name, required=not optional, help=about, **options)
        else:
            given = "?" if optional else None
            parser.add_argument(name.lower(), metavar=name, nargs=given, help=about, **options)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several processes",
        "each is given the same command, and sees the same --workdir; what they do not do "
        "together, the first one does while the others wait",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of the first one; auto: the cluster says it all"
    )
    group.add_argument("--num-processes", metavar="N", type=int, help="of the job")
    group.add_argument("--process-id", metavar="I", type=int, help="of this one, from 0 on")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
