"""Consumers: models that a downstream team trains on vectors once, then leaves as they are.

Those of scikit-learn (the extra `consumers`) stand for what such teams use. A consumer of your own
is a function like those here, named "module:function".
"""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Float32

from star_jax.config import InputError

Score = Callable[[Float32[np.ndarray, "B F"]], Float[np.ndarray, " B"]]
"""A trained consumer: features -> scores, higher where the label is more likely True."""


class Fit(Protocol):
    """Trains a consumer: same arguments, same consumer."""

    def __call__(
        self, features: Float32[np.ndarray, "B F"], labels: Bool[np.ndarray, " B"], seed: int
    ) -> Score:
        """Features are those of `star_jax.pipeline.consumers.versions.features`."""
        ...


DOT = "dot"  # Nothing is trained: the product of a pair's vectors, as a vector index ranks by.


def find_fit(name: str) -> Fit:
    """The consumer of that name.

    Raises:
      InputError: Nobody has that name, it cannot be imported, or scikit-learn is missing.
    """
    if name == DOT:
        return _dot
    if name in _MODELS:
        if importlib.util.find_spec("sklearn") is None:
            raise InputError(
                f"consumers names {name!r}, which scikit-learn trains and which cannot be "
                "imported: pip install 'star_jax[consumers]'"
            )
        return functools.partial(_fit_sklearn, _MODELS[name])
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join((DOT, *_MODELS))
        raise InputError(f"consumers names {name!r}, needed one of {known} or module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"consumers names {name!r}: {error}") from error
    return found


def checked_scores(
    name: str, score: Score, features: Float32[np.ndarray, "B F"]
) -> Float[np.ndarray, " B"]:
    """What a consumer says, in float64.

    Raises:
      InputError: It is not one finite number per row.
    """
    found = np.asarray(score(features))
    if found.shape != (len(features),) or not np.all(np.isfinite(found)):
        raise InputError(
            f"consumer {name} gave an array of shape {found.shape} for {len(features)} rows, "
            "needed one finite score for each"
        )
    return found.astype(np.float64)


def _dot(features: Float32[np.ndarray, "B F"], labels: Bool[np.ndarray, " B"], seed: int) -> Score:
    """The last third of a pair's features are the products of its vectors."""
    del features, labels, seed
    return lambda rows: rows[:, 2 * (rows.shape[1] // 3) :].sum(axis=1)


def _fit_sklearn(
    make: Callable[[int], Sequence[Any]],
    features: Float32[np.ndarray, "B F"],
    labels: Bool[np.ndarray, " B"],
    seed: int,
) -> Score:
    from sklearn.exceptions import ConvergenceWarning  # pyright: ignore[reportMissingImports]
    from sklearn.pipeline import make_pipeline  # pyright: ignore[reportMissingImports]

    model = make_pipeline(*make(seed))
    with warnings.catch_warnings():  # One that stopped at its last step is a consumer too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    return lambda rows: model.predict_proba(rows)[:, 1]


def _logistic(seed: int) -> Sequence[Any]:
    from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingImports]
    from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingImports]

    return StandardScaler(), LogisticRegression(C=0.01, max_iter=500, random_state=seed)


def _trees(seed: int) -> Sequence[Any]:
    from sklearn.ensemble import (  # pyright: ignore[reportMissingImports]
        HistGradientBoostingClassifier,
    )

    return (HistGradientBoostingClassifier(max_leaf_nodes=15, random_state=seed),)


def _mlp(seed: int) -> Sequence[Any]:
    from sklearn.neural_network import MLPClassifier  # pyright: ignore[reportMissingImports]
    from sklearn.preprocessing import StandardScaler  # pyright: ignore[reportMissingImports]

    network = MLPClassifier(
        hidden_layer_sizes=(128, 64),
        alpha=1e-3,
        early_stopping=True,
        max_iter=50,
        n_iter_no_change=5,
        random_state=seed,
    )
    return StandardScaler(), network


_MODELS = {"logistic": _logistic, "trees": _trees, "mlp": _mlp}
