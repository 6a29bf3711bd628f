"""The planted truth: who applies, replies and is contacted, as logistic functions of the world.

Members of whom texts say most (`TEXT`) ask for the right field where others ask for the right
culture, so that all that decides for them stands in their texts. Nothing else decides. Members are
shown open jobs uniformly, so the true logit orders the pairs of a positive and its uniform
negatives as well as anything can.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from star_jax.pipeline.market.places import CITY_COUNTRY
from star_jax.pipeline.market.world import TEXT, Members, Offer, same_area

_COUNTRY = np.array(CITY_COUNTRY)
_MAIN = 0.85  # What the main field of work counts; the second one counts the rest.


class Weights(NamedTuple):
    """Coefficients of the factors, each of which lies in [0, 1]."""

    intercept: float
    field: float
    culture: float
    place: float
    seniority: float
    urgency: float


# The intercepts are set by each market, so that its counts keep the paper's proportions.
APPLY = Weights(0.0, field=6.0, culture=4.0, place=0.6, seniority=0.6, urgency=0.0)
REPLY = Weights(0.0, field=1.5, culture=1.2, place=0.8, seniority=0.8, urgency=1.6)
CONTACT = Weights(0.0, field=2.5, culture=0.0, place=1.2, seniority=2.4, urgency=0.0)


def true_logit(
    weights: Weights,
    members: Members,
    member: Int[np.ndarray, " B"],
    time: Int[np.ndarray, " B"],
    offer: Offer,
    row: Int[np.ndarray, " B"],
) -> Float[np.ndarray, " B"]:
    """The logit of each pair: member `member[i]` as of `time[i]` and offer `row[i]`."""
    after = (time > members.moved[member]).astype(np.int64)
    city, seniority = members.city[member, after], members.seniority[member, after]
    gap = np.abs(seniority - offer.seniority[row])
    field = _field_match(members, member, offer, row)
    culture = members.culture[member] == offer.culture[row]
    return (
        weights.intercept
        + weights.field * field
        + weights.culture * np.where(members.speaks[member] == TEXT, field, culture)
        + weights.place * _place_match(city, offer, row)
        + weights.seniority * np.maximum(0.0, 1.0 - gap / 2.0)
        + weights.urgency * members.urgency[member] / 2.0
    )


def probability(logit: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """The logistic function."""
    return 1.0 / (1.0 + np.exp(-logit))


def with_mean(weights: Weights, logit: Float[np.ndarray, " B"], rate: float) -> Weights:
    """Moves the intercept until the mean probability of the given logits is `rate`."""
    low, high = -40.0, 40.0
    for _ in range(60):
        shift = (low + high) / 2
        low, high = (shift, high) if probability(logit + shift).mean() < rate else (low, shift)
    return weights._replace(intercept=weights.intercept + (low + high) / 2)


def _field_match(members: Members, member: np.ndarray, offer: Offer, row: np.ndarray) -> np.ndarray:
    """Compares main and second fields of both sides; a related field is worth a half."""
    match = np.zeros(len(member))
    for mine, mine_share in ((members.field, _MAIN), (members.second_field, 1 - _MAIN)):
        for asked, asked_share in ((offer.field, _MAIN), (offer.second_field, 1 - _MAIN)):
            a, b = mine[member], asked[row]
            match += mine_share * asked_share * np.where(a == b, 1.0, 0.5 * same_area(a, b))
    return np.minimum(match / _MAIN, 1.0)


def _place_match(city: np.ndarray, offer: Offer, row: np.ndarray) -> np.ndarray:
    asked = offer.city[row]
    country = np.where(_COUNTRY[city] == _COUNTRY[asked], 0.4, 0.0)
    return np.where(city == asked, 1.0, np.where(offer.remote[row], 0.7, country))
