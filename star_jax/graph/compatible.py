"""Maps to the vectors of an older version, trained with the encoder (Hu et al. 2022)."""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from star_jax.graph.batches import HostOrDevice, PairBatch, Role

MAPS = "compatible"
"""Where their parameters stand beside those of the encoders."""

Mapped = dict[str, dict[str, Float[Array, "..."]]]
"""By task and table, vectors of seeds in the older version's space."""

_Rows = tuple[Float[Array, "_ _"], Bool[Array, "_ _"]]
"""A number per seed, and which seeds count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompatibleMap:
    """Seeds of one role and type that an older version has vectors of.

    Attributes:
      node_type: Of the seeds.
      role: Whose encoder embeds them.
      table: Of the embeddings, old and new.
      name: Of the map, `compatible/<name>` among the parameters; equal names are one map.
      width: Of the older vectors.
    """

    node_type: str
    role: Role
    table: str
    name: str
    width: int


class CompatibleMaps(nn.Module):
    """Bias-free linear maps B_k, one parameter per name, new width by old width.

    Attributes:
      maps: Those of a model.
    """

    maps: tuple[CompatibleMap, ...]

    @nn.compact
    def __call__(self, name: str, embedding: Float[HostOrDevice, "S E"]) -> Float[Array, "S F"]:
        """B_k z of every row."""
        widths = {each.name: each.width for each in self.maps}
        shape = (embedding.shape[1], widths[name])
        return jnp.asarray(embedding) @ self.param(name, nn.initializers.lecun_normal(), shape)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)  # Arrays have no one equality.
class Alignment:
    """What maps miss of the older vectors: MSE_sender + MSE_receiver + MSE_negatives.

    Each is a mean over the seeds of all tasks that the older version knows, and over the numbers
    of a vector, as in the authors' code: senders, receivers of positive pairs, receivers of
    negative ones. With `older`, the difference d = B_k z_k - z_(k-1) also goes through B_(k-1),
    through B_(k-2) B_(k-1), and so on, and an MSE is the mean over these and d itself
    ("multi-step"): what consumers of every older version would see of d.

    Attributes:
      weight: lambda.
      maps: Of the model.
      older: By table, matrices that rows d are multiplied with to come to the versions before the
        older one, the newest first. No gradient reaches them: they are constants.
    """

    weight: float
    maps: tuple[CompatibleMap, ...]
    older: Mapping[str, tuple[np.ndarray, ...]]

    def __call__(
        self, mapped: Mapped, tasks: Mapping[str, PairBatch]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The sum of the three, without its weight.

        Args:
          mapped: From the model, with a leading axis of devices.
          tasks: Pairs with `old`.

        Returns:
          The sum; and the metrics `loss_alignment`, which is the same, and `alignment`, the mean
          length of d over all seeds.
        """
        role_of = {each.table: each.role for each in self.maps}
        errors: dict[str, list[_Rows]] = {"sender": [], "receiver": [], "negatives": []}
        lengths: list[_Rows] = []
        for task, tables in mapped.items():
            pairs = tasks[task]
            assert pairs.old is not None
            for table, ours in tables.items():
                vectors, known = map(jnp.asarray, pairs.old[table])
                missed = ours[:, : known.shape[1]] - vectors  # The rest is padding.
                error = self._mean_squares(table, missed)
                lengths.append((jnp.linalg.norm(jax.lax.stop_gradient(missed), axis=-1), known))
                if role_of[table] == "sender":
                    errors["sender"].append((error, known))
                    continue
                positive = jnp.asarray(pairs.label) == 1  # A receiver seed is one of its pair.
                errors["receiver"].append((error, known & positive))
                errors["negatives"].append((error, known & ~positive))
        total = sum(map(_mean, errors.values()), jnp.zeros(()))
        return total, {"loss_alignment": total, "alignment": _mean(lengths)}

    def _mean_squares(
        self, table: str, difference: Float[Array, "shards S E"]
    ) -> Float[Array, "shards S"]:
        further = [difference @ matrix for matrix in self.older.get(table, ())]
        squares = [jnp.mean(each**2, axis=-1) for each in (difference, *further)]
        return sum(squares[1:], squares[0]) / len(squares)


def _mean(rows: Sequence[_Rows]) -> Float[Array, ""]:
    """Over what counts; 0 where nothing does."""
    total = sum((jnp.sum(jnp.where(mask, value, 0.0)) for value, mask in rows), jnp.zeros(()))
    count = sum((jnp.sum(mask) for _, mask in rows), jnp.int32(0))
    return total / jnp.maximum(count, 1).astype(total.dtype)
