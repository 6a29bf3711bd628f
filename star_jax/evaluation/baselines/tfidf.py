"""TF-IDF cosine: two texts match when they share rare words."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse

MIN_DOCUMENTS = 3
MAX_DOCUMENT_SHARE = 0.5

# Words of two letters and more. Scripts without spaces between words give pairs of characters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]{{2,}}")
_PAIRS = re.compile(f"[{_UNSPACED}]")


class TfIdf(NamedTuple):
    """A fitted vocabulary."""

    column: dict[str, int]
    inverse_frequency: Float[np.ndarray, " V"]

    def vectors(self, texts: Iterable[str]) -> sparse.csr_array:
        """Unit vectors, (1 + ln tf) * idf; zeros for a text without a known word."""
        values: list[float] = []
        columns: list[int] = []
        ends = [0]
        for text in texts:
            known = Counter(self.column[word] for word in words(text) if word in self.column)
            columns += known.keys()
            values += known.values()
            ends.append(len(columns))
        shape = (len(ends) - 1, len(self.column))
        index = np.asarray(columns, np.int32)
        data = (1 + np.log(np.asarray(values, np.float64))) * self.inverse_frequency[index]
        return unit_rows(sparse.csr_array((data, index, np.asarray(ends, np.int32)), shape=shape))


def fit(texts: Sequence[str]) -> TfIdf:
    """Keeps the words of at least three documents and at most half of them.

    idf = ln((1 + documents) / (1 + documents with the word)) + 1. With few documents every word
    of at least one is kept.
    """
    frequency = Counter(word for text in texts for word in set(words(text)))
    few = len(texts) < 2 * MIN_DOCUMENTS
    kept = sorted(
        word
        for word, count in frequency.items()
        if few or MIN_DOCUMENTS <= count <= MAX_DOCUMENT_SHARE * len(texts)
    )
    counts = np.asarray([frequency[word] for word in kept], np.float64)
    return TfIdf(
        {word: i for i, word in enumerate(kept)}, np.log((1 + len(texts)) / (1 + counts)) + 1
    )


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        if _PAIRS.match(word) and len(word) > 1:
            found += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            found.append(word)
    return found


def unit_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    """Scales every row to length 1; rows of zeros stay."""
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).reshape(-1))
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    return sparse.csr_array(sparse.diags_array(inverse) @ matrix)
