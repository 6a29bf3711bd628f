"""Validation of a graph model whose texts are encoded by the encoder as it is at that step."""

import dataclasses
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from star_jax.graph.batches import NodeTable, Subgraph
from star_jax.pipeline.graph_adaptive import GraphValidate
from star_jax.pipeline.graph_text import GraphTextConfig, TextInStep, is_numbered, parted
from star_jax.pipeline.graph_tokens import MakeBatch, TokenBatches
from star_jax.pipeline.text_encoding import BulkEncoder, bulk_lengths
from star_jax.pipeline.text_records import TextRecords, text_records
from star_jax.shapes import PyTree
from star_jax.text.tower import build_tokenizer

_NUM_LENGTHS = 3


class CurrentTexts:
    """Vectors of texts by an encoder that changes: each text is encoded once per encoder."""

    def __init__(self, text: TextInStep, records: TextRecords, mesh: Mesh) -> None:
        """Encodes nothing yet.

        Args:
          text: The encoder.
          records: The texts.
          mesh: Where its variables lie.
        """
        self._text, self._records = text, records
        lengths = bulk_lengths(records.lengths, _NUM_LENGTHS)
        self._encoder = BulkEncoder(text.model, records, mesh, lengths=lengths, batch_tokens=None)
        self.begin({})

    def begin(self, trainable: PyTree) -> None:
        """Forgets all vectors: from now on they are those of this encoder."""
        self._variables = {**self._text.frozen, **trainable}
        self._row = np.full(len(self._records), -1, np.int64)
        self._vectors = np.zeros((0, self._encoder.embedding_size), np.float32)

    def __call__(self, subgraph: Subgraph) -> Subgraph:
        """The subgraph with vectors in the place of the numbers of its texts."""
        return subgraph.with_tables(self._with_vectors)

    def take(self, records: Int[np.ndarray, " N"]) -> Float32[np.ndarray, "N E"]:
        """Vectors of records."""
        new = np.unique(records[self._row[records] < 0])
        if len(new):
            self._row[new] = len(self._vectors) + np.arange(len(new))
            found = self._encoder(self._variables, new, lambda *_: None)
            self._vectors = np.concatenate([self._vectors, found])
        return self._vectors[self._row[records]]

    def _with_vectors(self, name: str, table: NodeTable) -> NodeTable:
        if not is_numbered(table):
            return table
        real = int(np.max(table.text_row, initial=-1)) + 1
        texts = np.zeros((len(table.texts), self._encoder.embedding_size), np.float32)
        texts[:real] = self.take(self._records.of(name, np.asarray(table.texts)[:real, 0]))
        return table._replace(texts=texts)


@dataclasses.dataclass(frozen=True)
class TextValidation:
    """A validation whose subgraphs have numbers of texts.

    Attributes:
      validation: Has `texts` put vectors in their place.
      texts: Encodes anew at every call.
    """

    validation: GraphValidate
    texts: CurrentTexts

    def __call__(self, variables: PyTree, step: int) -> dict[str, float]:
        """Metrics of the graph model with its text encoder."""
        graph, trainable = parted(variables["params"])
        self.texts.begin(trainable)
        return self.validation({**variables, "params": graph}, step)


class EncodedTexts:
    """What a training whose steps encode texts has beside one that reads vectors.

    Attributes:
      current: For `GraphValidation`.
    """

    def __init__(
        self, config: GraphTextConfig, text: TextInStep, workdir: Path, mesh: Mesh, *, seed: int
    ) -> None:
        """Opens the texts as tokens; makes them where they are missing.

        Args:
          config: Of the encoding.
          text: The encoder.
          workdir: Holds the tables.
          mesh: Where its variables lie.
          seed: Of the choice of texts that train.
        """
        self._config, self._seed = config, seed
        self._records = text_records(workdir, build_tokenizer(text.tower))
        self.current = CurrentTexts(text, self._records, mesh)

    def batches(self, make: MakeBatch) -> TokenBatches:
        """Batches with tokens beside the numbers of texts."""
        return TokenBatches(
            make,
            self._records,
            num_lengths=self._config.num_lengths,
            trained=0 if self._config.mode == "frozen" else self._config.lm_train_nodes,
            seed=self._seed,
        )

    def validation(self, validation: GraphValidate) -> GraphValidate:
        """A validation by the encoder as it is when it is called."""
        return TextValidation(validation, self.current)
