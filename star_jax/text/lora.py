"""LoRA on activations: y = xW + (xA)B, with alpha / rank folded into B.

Nothing is merged inside the loss, so no gradient of a frozen weight is ever formed. Adapters
live in their own collection "lora", in float32; a tower does not know about them: `adapted`
intercepts its linear maps while it is applied.

Where every tower has adapters of its own they lie side by side: A maps to the inner widths of all
of them, B maps from all, and a token keeps the inner width of its own kind alone. So texts of all
kinds may share a row.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from star_jax.config import InputError
from star_jax.shapes import PyTree
from star_jax.text.linears import Linears
from star_jax.text.prompts import KINDS, Kind

COLLECTION = "lora"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters.

    Attributes:
      rank: Inner width.
      alpha: The adapter's output is scaled by alpha / rank.
      dropout: Share of the adapters' inputs that is zeroed in training.
      targets: Pattern that the whole path of a linear map must match.
      tower_adapters: Adapters for each kind of `KINDS` instead of shared ones; a text of another
        kind is read by the base alone.
    """

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: str = r".*/(q_proj|k_proj|v_proj)"
    tower_adapters: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} is below 1")
        if not self.alpha > 0.0:
            raise ValueError(f"alpha {self.alpha} must be > 0: adapters would never act")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout {self.dropout} is outside [0, 1)")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"targets {self.targets!r} is no pattern: {error}") from error

    @property
    def inner_size(self) -> int:
        """Columns of A, rows of B."""
        return self.rank * (len(KINDS) if self.tower_adapters else 1)


def init_lora(key: PRNGKeyArray | Array, params: PyTree, config: LoraConfig) -> dict[str, Any]:
    """Adapters for every linear map of `params` that the config targets: A ~ He, B = 0.

    Args:
      key: Drives A.
      params: The base's parameters, or their shapes; stacked layers get stacked adapters.
      config: Which maps, and how wide.

    Raises:
      InputError: The pattern matches no linear map.
    """
    kernels = {
        path.removesuffix("/kernel"): leaf
        for path, leaf in _flatten(params).items()
        if path.endswith("/kernel")
    }
    targets = [path for path in kernels if re.fullmatch(config.targets, path)]
    if not targets:
        raise InputError(
            f"lora.targets {config.targets!r} matches none of {', '.join(sorted(kernels))}"
        )
    adapters = {}
    for path, subkey in zip(targets, jax.random.split(key, len(targets)), strict=True):
        *stack, in_size, out_size = kernels[path].shape
        normal = jax.random.normal(subkey, (*stack, in_size, config.inner_size), jnp.float32)
        adapters[f"{path}/a"] = normal * (2.0 / in_size) ** 0.5
        adapters[f"{path}/b"] = jnp.zeros((*stack, config.inner_size, out_size), jnp.float32)
    return unflatten_dict(adapters, sep="/")


@contextmanager
def adapted(config: LoraConfig, kind: Int[Array, "R L"] | None = None) -> Iterator[None]:
    """Within it, linear maps applied with variables in "lora" add their adapters' output.

    Dropout acts when the module is applied with a "dropout" key.

    Args:
      config: Of the adapters.
      kind: Number of each token's kind, where every tower has adapters of its own.

    Raises:
      ValueError: The kinds are missing, or there are some without `tower_adapters`.
    """
    if config.tower_adapters != (kind is not None):
        raise ValueError(
            f"kind of the texts with lora.tower_adapters {config.tower_adapters}: needed where "
            "every tower has its own, and only there"
        )
    own = None
    if kind is not None:
        own = jnp.repeat(jax.nn.one_hot(kind, len(KINDS), dtype=bool), config.rank, axis=2)
    with nn.intercept_methods(_interceptor(config, own)):
        yield


def of_tower(lora: PyTree, config: LoraConfig, kind: Kind) -> tuple[PyTree, LoraConfig]:
    """The adapters of one tower, as shared ones.

    Args:
      lora: Of all towers.
      config: With `tower_adapters`.
      kind: Of the texts that it reads.
    """
    start = KINDS.index(kind) * config.rank
    end = start + config.rank

    def own(path: str, leaf: Any) -> Any:
        return leaf[..., start:end] if path.endswith("/a") else leaf[..., start:end, :]

    sliced = {path: own(path, leaf) for path, leaf in _flatten(lora).items()}
    return unflatten_dict(sliced, sep="/"), replace(config, tower_adapters=False)


def merge_lora(params: PyTree, lora: PyTree, config: LoraConfig) -> PyTree:
    """Base parameters with the adapters added into their kernels, in the kernels' dtype.

    Raises:
      ValueError: The base is quantised: a merged kernel would be another one. Or every tower has
        adapters of its own.
    """
    if config.tower_adapters:
        raise ValueError("lora.tower_adapters, needed the adapters of one tower: `of_tower`")
    merged, adapters = _flatten(params), _flatten(lora)
    for path in [path.removesuffix("/a") for path in adapters if path.endswith("/a")]:
        kernel = merged[f"{path}/kernel"]
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise ValueError(
                f"{path}/kernel is {kernel.dtype}, needed the base as it was read: "
                "merge with tower.base_quantisation none"
            )
        b = adapters[f"{path}/b"] * (config.alpha / config.rank)
        delta = jnp.matmul(adapters[f"{path}/a"], b, precision="highest")
        merged[f"{path}/kernel"] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
    return unflatten_dict(merged, sep="/")


def _flatten(tree: PyTree) -> dict[str, Any]:
    return cast("dict[str, Any]", flatten_dict(tree, sep="/"))


def _interceptor(config: LoraConfig, own: Bool[Array, "R L inner"] | None) -> Callable[..., Any]:
    """Adds adapters; of each token's inner width only its own part counts, None is all of it."""
    scale = config.alpha / config.rank

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        outputs = call(*args, **kwargs)
        module = context.module
        if not isinstance(module, Linears) or context.method_name != "__call__":
            return outputs
        names = [name for name, _ in module.features if module.has_variable(COLLECTION, name)]
        if not names:
            return outputs
        (x,) = args
        if config.dropout > 0.0 and module.has_rng("dropout"):
            keep = 1.0 - config.dropout
            kept = jax.random.bernoulli(module.make_rng("dropout"), keep, x.shape)
            x = jnp.where(kept, x / keep, jnp.zeros((), x.dtype))
        adapters = {name: module.get_variable(COLLECTION, name) for name in names}
        # Adapters that share an input share one A matmul.
        a = jnp.concatenate([adapters[name]["a"] for name in names], axis=-1)
        inner = jnp.split(x @ a.astype(x.dtype), len(names), axis=-1)
        if own is not None:
            inner = [jnp.where(own, h, jnp.zeros((), h.dtype)) for h in inner]
        added = {
            name: h @ (adapters[name]["b"] * scale).astype(x.dtype)
            for name, h in zip(names, inner, strict=True)
        }
        return tuple(
            y + added[name] if name in added else y
            for (name, _), y in zip(module.features, outputs, strict=True)
        )

    return intercept
