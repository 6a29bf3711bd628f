"""Prompts: the words put before a text, by prompt version and kind of entity.

One encoder reads every kind of text; the prompt tells it which one it reads (JUDE: "soft task
descriptors"). A version is never edited, only added: its text is part of what a vector means.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from star_jax.config import InputError

Kind = Literal["job", "profile", "resume"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of texts that training reads, in the order of their numbers."""

OTHER = "*"
"""Stands for every kind that a version does not name, such as the type of an attribute node."""

PROMPTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "none": {OTHER: ""},
        # The wording of e5-mistral: a task for the side that asks, documents bare in the paper of
        # E5; here every kind has one, as in STAR.
        "instruct-1": {
            "job": "Instruct: Represent this job posting, to find members who would apply to it\n"
            "Query: ",
            "profile": "Instruct: Represent this member profile, to find jobs the member would "
            "apply to\nQuery: ",
            "resume": "Instruct: Represent this resume, to find jobs its owner would apply to\n"
            "Query: ",
            OTHER: "Instruct: Represent this {kind}, to find members and jobs it belongs to\n"
            "Query: ",
        },
        # The prefixes of the E5 models of the BERT family.
        "e5-1": {"profile": "query: ", "resume": "query: ", OTHER: "passage: "},
    }
)

ROLES: Mapping[str, str] = MappingProxyType({"query": "profile", "document": "job"})
"""Which kinds libraries of sentence embeddings mean by their two roles."""

_TAGS = (
    "a abbr article b big blockquote body br center code dd div dl dt em font footer h1 h2 h3 h4 "
    "h5 h6 head header hr html i img li link meta nav ol p pre script section small span strong "
    "style sub sup table tbody td tfoot th thead title tr tt u ul"
)
_MARKUP = re.compile(rf"</?(?:{_TAGS.replace(' ', '|')})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,31}|#\d{1,7}|#x[0-9a-fA-F]{1,6});")


def kind_number(kind: str) -> int:
    """Place of a kind in `KINDS`; -1 for any other, such as the type of an attribute node."""
    return KINDS.index(kind) if kind in KINDS else -1


def kind_of(name: str) -> str:
    """The kind that a caller means by the name of a prompt."""
    return ROLES.get(name, name)


def prompt(version: str, kind: str) -> str:
    """The words put before a text of this kind.

    Raises:
      InputError: The version is unknown.
    """
    if version not in PROMPTS:
        raise InputError(f"prompts {version!r} is unknown, needed one of {', '.join(PROMPTS)}")
    prompts = PROMPTS[version]
    return prompts.get(kind, prompts[OTHER]).format(kind=kind.replace("_", " "))


def named_prompts(version: str, kinds: Iterable[str]) -> dict[str, str]:
    """Prompts by the names that a caller may use: the kinds, and the two roles.

    Args:
      version: Of the prompts.
      kinds: Kinds beside those of `KINDS`.
    """
    names = dict.fromkeys([*KINDS, *kinds])
    of_kinds = {name: prompt(version, name) for name in names}
    return of_kinds | {role: prompt(version, kind) for role, kind in ROLES.items()}


def clean(text: str) -> str:
    """Full raw text with minimal change: Unicode NFC, HTML markup off, blanks collapsed.

    Only known HTML tags go: `List<String>` and `</s>` are somebody's words.
    """
    text = _MARKUP.sub(" ", text) if "<" in text else text
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text
    return " ".join(unicodedata.normalize("NFC", text).split())
