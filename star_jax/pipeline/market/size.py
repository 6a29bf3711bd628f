"""How big a market is: the paper's tables 10 and 11 scaled to a number of members."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from star_jax.pipeline.market.fields import FIELDS, GENERAL_SKILLS

NUM_TITLES = sum(len(field.titles) for field in FIELDS)
NUM_SKILLS = sum(len(field.skills) for field in FIELDS) + len(GENERAL_SKILLS)
MEMBERS = {"tiny": 200, "small": 2_000, "medium": 20_000}
MIN_MEMBERS, MAX_MEMBERS = 100, 200_000

# Millions of nodes (table 10) and, where an end of the edge scales with them, of edges (table 11).
NODE_MILLIONS = {
    "member": 376.0,
    "job": 240.0,
    "position": 121.0,
    "company": 19.0,
    "hire_project": 6.0,
    "recruiter": 0.596,
    "skill": 0.042,
    "title": 0.025,
}
EDGE_MILLIONS = {
    "job__has__title": 417.0,
    "job__at__company": 370.0,
    "job__has__position": 358.0,
    "job__needs__skill": 3977.0,
    "member__has__title": 568.0,
    "member__at__company": 462.0,
    "member__current__position": 553.0,
    "member__past__position": 15.0,
    "member__has__skill": 1247.0,
    "member__apply__job": 2722.0,
    "member__save__job": 724.0,
    "member__positive__recruiter": 171.0,
    "recruiter__contact__member": 92.0,
    "hire_project__inmail__member": 582.0,
}

# Types that the paper has too few of per member to be of use in a small market never fall below
# these. Titles and skills come from a vocabulary of fixed length, which is their floor.
FLOORS = {
    "position": 48,
    "company": 24,
    "hire_project": 24,
    "recruiter": 12,
    "skill": NUM_SKILLS,
    "title": NUM_TITLES,
}


@dataclass(frozen=True, kw_only=True)
class MarketConfig:
    """A synthetic market. Equal configs give equal bytes.

    Attributes:
      size: A name, or the number of members; all other counts follow from it.
      text_words: Longest text, in words; about 1.4 tokens a word.
      edit_share: Share of members who move in the window, which changes their city, perhaps their
        level, and their texts; a third of it of the jobs are worded anew.
      resume_share: Share of members with a resume.
      opt_out_share: Share of members who do not consent to being used.
      structure_share: Share of members whose texts say nothing, but whose edges do.
      text_share: Share of members whose texts say all that decides, and who have neither attribute
        edges nor, for most, a history: they come once, for two weeks.
    """

    size: Literal["tiny", "small", "medium"] | int = "small"
    seed: int = 0
    text_words: int = 45
    edit_share: float = 0.25
    resume_share: float = 0.65
    opt_out_share: float = 0.03
    structure_share: float = 0.12
    text_share: float = 0.12

    def __post_init__(self) -> None:
        if not MIN_MEMBERS <= self.num_members <= MAX_MEMBERS:
            raise ValueError(
                f"market size {self.size!r}: needed tiny, small, medium or a number of members "
                f"from {MIN_MEMBERS} to {MAX_MEMBERS} (all is drawn in memory)"
            )
        if self.seed < 0:
            raise ValueError(f"market seed {self.seed}, needed 0 or more")
        if self.text_words < 20:
            raise ValueError(f"market text_words {self.text_words}, needed 20 or more")
        shares = ("edit", "resume", "opt_out", "structure", "text")
        for name in shares:
            share = getattr(self, f"{name}_share")
            if not 0 <= share <= 1:
                raise ValueError(f"market {name}_share {share}, needed 0 to 1")
        if not self.structure_share + self.text_share <= 0.5:
            raise ValueError(
                f"market structure_share {self.structure_share} + text_share {self.text_share}, "
                "needed at most 0.5: the other members carry the edges"
            )

    @property
    def num_members(self) -> int:
        """Members, consenting or not."""
        return self.size if isinstance(self.size, int) else MEMBERS[self.size]


class Counts(NamedTuple):
    """How many there are of each type."""

    nodes: dict[str, int]
    edges: dict[str, int]
    floored: tuple[str, ...]  # Node types of which the paper's ratio would give too few.


def counts(config: MarketConfig) -> Counts:
    """Nodes and edges in the paper's proportions to the number of members."""
    members = config.num_members
    exact = {name: members * m / NODE_MILLIONS["member"] for name, m in NODE_MILLIONS.items()}
    nodes = {name: max(round(value), FLOORS.get(name, 1)) for name, value in exact.items()}
    edges = {
        name: round(members * m / NODE_MILLIONS["member"]) for name, m in EDGE_MILLIONS.items()
    }
    floored = tuple(name for name, floor in FLOORS.items() if round(exact[name]) < floor)
    return Counts(nodes, edges, floored)
