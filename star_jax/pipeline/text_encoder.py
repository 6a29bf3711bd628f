"""Texts to vectors in Python, with the conventions of sentence-transformers.

encoder = TextEncoder.open("runs/market/text")
jobs = encoder.encode_document(["Nurse, full time", "Go developer"])
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32, Shaped

from star_jax.embeddings.quantise import RANGED, Precision, measure_ranges, quantise
from star_jax.parallel.mesh import MeshConfig, make_mesh, num_row_shards
from star_jax.parallel.rules import batch_shardings, put
from star_jax.pipeline.lengths import padded_length
from star_jax.pipeline.text_model import MODEL, open_trained
from star_jax.shapes import PyTree
from star_jax.text.attention_choice import BackendChoice
from star_jax.text.bi_encoder import BiEncoder, build_bi_encoder, encode
from star_jax.text.families import TokenLimits
from star_jax.text.objective import ObjectiveConfig
from star_jax.text.packing import Tokens
from star_jax.text.prompts import kind_number, kind_of, named_prompts
from star_jax.text.scorer import ScorerConfig
from star_jax.text.tokenizer import Tokenizer, Truncation
from star_jax.text.tower import TowerConfig, build_tokenizer, load_params, read_base
from star_jax.train.reporter import Progress

_SHORTEST = 16
_FEW_ROWS = 8

_encode = jax.jit(encode, static_argnums=0)


class TextEncoder:
    """A model that encodes strings; each padded shape compiles once, and there are few.

    Attributes:
      prompts: Words put before a text, by the name that `prompt_name` asks for.
      embedding_size: Width of the vectors.
      max_seq_length: Longest text in tokens, unless `prompt_name` has a limit of its own.
    """

    def __init__(
        self,
        model: BiEncoder,
        variables: PyTree,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        prompts: Mapping[str, str],
        limits: TokenLimits,
    ) -> None:
        """Takes the parts; `open` reads them from a folder.

        Args:
          model: Encodes.
          variables: On the mesh.
          tokenizer: Of the model's base.
          mesh: Rows of a batch are split over its devices, but for `tensor`.
          prompts: By name.
          limits: With every field set.
        """
        self._model, self._variables, self._mesh = model, variables, mesh
        self._tokenizer, self._limits = tokenizer, limits
        self.prompts = dict(prompts)
        self.embedding_size = model.tower.embedding_size
        self.max_seq_length: int = max(vars(limits).values())

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        mesh: Mesh | None = None,
        kinds: Iterable[str] = (),
        attention_backend: BackendChoice = "auto",
    ) -> "TextEncoder":
        """Opens `W/text` with its best checkpoint, or a base model as it was published.

        Args:
          folder: What `star train-text` leaves, or whatever `TowerConfig.base` takes; a base gets
            its family's pooling, prompts and limits.
          mesh: One device where None.
          kinds: Kinds of texts beside job, profile and resume that have a prompt.
          attention_backend: As in `TowerConfig`.

        Raises:
          InputError: The folder is neither, or training has not finished.
        """
        mesh = make_mesh(MeshConfig(data=1)) if mesh is None else mesh
        if (Path(folder) / MODEL).is_file():
            trained = open_trained(Path(folder), mesh, attention_backend)
            model, config, variables = trained.model, trained.tower, trained.variables
        else:
            config = TowerConfig(base=str(folder), attention_backend=attention_backend)
            model = build_bi_encoder(config, ScorerConfig(), ObjectiveConfig(), None)
            variables = {"params": load_params(config, model.tower, mesh)}
        base = read_base(config)
        prompts = named_prompts(base.prompts, kinds)
        tokenizer = build_tokenizer(config)
        return cls(model, variables, tokenizer, mesh, prompts=prompts, limits=base.limits)

    def encode_query(
        self, sentences: str | Sequence[str], prompt_name: str | None = "query", **options: Any
    ) -> Shaped[np.ndarray, "*n E"] | Shaped[Array, "*n E"]:
        """As `encode`, with the prompt of the side that asks: a member's profile."""
        return self.encode(sentences, prompt_name, **options)

    def encode_document(
        self, sentences: str | Sequence[str], prompt_name: str | None = "document", **options: Any
    ) -> Shaped[np.ndarray, "*n E"] | Shaped[Array, "*n E"]:
        """As `encode`, with the prompt of the side that is found: a job."""
        return self.encode(sentences, prompt_name, **options)

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        *,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        ranges: Float32[np.ndarray, "2 E"] | None = None,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = True,
    ) -> Shaped[np.ndarray, "*n E"] | Shaped[Array, "*n E"]:
        """Vectors of length 1 in the order of the sentences.

        Args:
          sentences: A string, whose result is one vector, or several, whose result has rows.
          prompt_name: Which of `prompts` to put before each; its kind's limit applies.
          prompt: The words themselves; they win over those of `prompt_name`.
          batch_size: Texts of one forward pass.
          normalize_embeddings: Restores length 1 after `truncate_dim`.
          truncate_dim: Keeps the first so many numbers of each vector.
          precision: Of the result; int8 and uint8 cut the ranges of the dimensions into steps.
          ranges: Least and greatest value of each dimension, e.g. the `ranges.npy` of an export;
            None: those of these very vectors, of which there must be two.
          show_progress_bar: Logs the progress.
          convert_to_numpy: Otherwise the result is a JAX array.

        Raises:
          ValueError: An unknown prompt, a width that does not exist, or ranges are needed.
        """
        before, limit = self._before(prompt_name, prompt)
        if truncate_dim is not None and not 1 <= truncate_dim <= self.embedding_size:
            raise ValueError(
                f"truncate_dim {truncate_dim} is outside [1, {self.embedding_size}], the width "
                "of the model"
            )
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        rows = self._tokenizer.encode_after(before, texts, limit, Truncation())
        skipped = self._tokenizer.prompt_lengths(before, rows)
        vectors = self.encode_rows(
            rows,
            batch_size,
            skipped=skipped,
            kind=None if prompt_name is None else kind_of(prompt_name),
            show_progress=show_progress_bar,
        )
        vectors = vectors[:, :truncate_dim]
        if normalize_embeddings:
            norm = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norm, np.float32(1e-12))
        vectors = _narrow(vectors, precision, ranges)
        vectors = vectors[0] if isinstance(sentences, str) else vectors
        return vectors if convert_to_numpy else jnp.asarray(vectors)

    def encode_rows(
        self,
        rows: Sequence[Int[np.ndarray, " _"]],
        batch_size: int = 32,
        *,
        skipped: Sequence[int] | None = None,
        kind: str | None = None,
        show_progress: bool = False,
    ) -> Float32[np.ndarray, "N E"]:
        """Vectors of texts given as token ids, special ones included.

        Args:
          rows: Ids of each text.
          batch_size: Texts of one forward pass.
          skipped: Leading ids of each that are its prompt; None: there are no prompts.
          kind: Of the texts; needed where every tower has adapters of its own.
          show_progress: Logs the progress.

        Raises:
          ValueError: No batch size, or the kind is missing.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be >= 1")
        vectors = np.empty((len(rows), self.embedding_size), np.float32)
        lengths = np.array([len(row) for row in rows], np.int64)
        order = np.argsort(-lengths, kind="stable")  # What does not fit the memory fails first.
        progress = Progress("encode", float(lengths.sum()), "tokens") if show_progress else None
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            texts = self._pad([rows[i] for i in chosen], batch_size)
            if kind is not None:
                texts = texts._replace(kind=np.full_like(texts.lengths, kind_number(kind)))
            if skipped is not None:
                prompts: Any = texts.skipped
                prompts[: len(chosen), 0] = [skipped[i] for i in chosen]
            placed = put(texts, batch_shardings(texts, self._mesh))
            with jax.set_mesh(self._mesh):  # Kernels that XLA cannot split follow it.
                result = _encode(self._model, self._variables, placed, None)
            vectors[chosen] = np.asarray(result)[: len(chosen)]
            if progress is not None:
                done = float(lengths[chosen].sum())
                progress.advance(done, done)
        return vectors

    def _before(self, prompt_name: str | None, prompt: str | None) -> tuple[str, int]:
        """The words before each text, and the limit."""
        lora = self._model.lora
        if prompt_name is None and lora is not None and lora.tower_adapters:
            raise ValueError(
                "prompt_name None with a model of lora.tower_adapters, needed the kind of the "
                "texts: it decides the adapters that read them"
            )
        if prompt_name is not None and prompt_name not in self.prompts:
            known = ", ".join(self.prompts)
            raise ValueError(f"prompt_name {prompt_name!r} is unknown, needed one of {known}")
        if prompt is not None or prompt_name is None:
            return prompt or "", self.max_seq_length
        return self.prompts[prompt_name], self._limits.of(kind_of(prompt_name))

    def _pad(self, rows: Sequence[Int32[np.ndarray, " _"]], batch_size: int) -> Tokens:
        """One of the few shapes that hold these texts."""
        lengths, length = [], _SHORTEST
        while length < self.max_seq_length:
            lengths.append(length)
            length *= 2
        lengths.append(self.max_seq_length)
        longest = max(len(row) for row in rows)
        counts = sorted({min(n, batch_size) for n in (1, _FEW_ROWS, batch_size)})
        shards = num_row_shards(self._mesh)
        num_rows = -(-padded_length(len(rows), tuple(counts)) // shards) * shards
        shape = (num_rows, padded_length(longest, tuple(lengths)))
        tokens: Any = np.full(shape, self._tokenizer.pad_id, np.int32)  # Host; `put` places it.
        of_text: Any = np.zeros((num_rows, 1), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            of_text[i] = len(row)
        return Tokens(tokens, of_text, np.zeros_like(of_text))


def _narrow(
    vectors: Float32[np.ndarray, "N E"],
    precision: Precision,
    ranges: Float32[np.ndarray, "2 E"] | None,
) -> Shaped[np.ndarray, "N _"]:
    """In the precision asked for, by the given ranges or their own."""
    if precision == "float32" or not len(vectors):
        return vectors
    if precision in RANGED and ranges is None:
        if len(vectors) < 2:
            raise ValueError(
                f"precision {precision} of one vector needs ranges, such as ranges.npy of an "
                "export: its own would make every dimension the same"
            )
        ranges = measure_ranges(vectors)
    return quantise(vectors, precision, ranges)
