"""Sentiment of film reviews, one sentence each: `rt-polarity.pos` and `rt-polarity.neg`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.lab.dataset import Dataset, split
from holdfast.lab.folder import existing_folder

VOCABULARY = 2000
"""Words kept: those that occur in about 10 or more of the 8,400 training sentences."""


def read_reviews(folder: Path, *, vocabulary: int = VOCABULARY, seed: int = 0) -> Dataset:
    """Read the reviews as bags of words.

    A sentence becomes the counts of the most frequent words of the *training* sentences, divided by their
    Euclidean norm, so that a long sentence weighs as much as a short one. A sentence of rare words only is 0.
    A file that is missing, empty or not text is an `InputError`.

    Args:
        folder: that holds `rt-polarity.pos` and `rt-polarity.neg`, one review a line, words parted by spaces.
        vocabulary: at most so many words.
        seed: of the split.

    Returns:
        Label 1 is a good review, 0 a bad one; a fifth is held out, 128 are the probe's.

    References:
        B. Pang, L. Lee (2005), Seeing stars, ACL.
    """
    folder = existing_folder(folder, "reviews")
    good, bad = _sentences(folder / "rt-polarity.pos"), _sentences(folder / "rt-polarity.neg")
    sentences = [*good, *bad]
    labels = torch.tensor([1] * len(good) + [0] * len(bad))
    part = split(len(sentences), name="reviews", seed=seed)
    words = frequent_words((sentences[index] for index in part.train.tolist()), vocabulary)
    inputs = bag_of_words(sentences, words)
    return Dataset(
        name="reviews",
        source=f"film reviews, one sentence each, as bags of {len(words):,} words",
        classes=2,
        inputs=inputs[part.train],
        labels=labels[part.train],
        probe=inputs[part.probe],
        held_out=inputs[part.held_out],
        held_out_labels=labels[part.held_out],
    )


def frequent_words(sentences: Iterable[Sequence[str]], most: int) -> list[str]:
    """The words that occur in the most sentences, ties in alphabetical order.

    Example:
        >>> frequent_words([["a", "good", "film"], ["a", "bad", "film", "film"]], 3)
        ['a', 'film', 'bad']
    """
    counts = Counter(word for sentence in sentences for word in set(sentence))
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


def bag_of_words(sentences: Sequence[Sequence[str]], words: Sequence[str]) -> Float[Tensor, "sentences words"]:
    """Counts of the given words, each sentence scaled to length 1.

    Example:
        >>> bag_of_words([["a", "a", "b"], ["c"]], ["a", "b"]).tolist()[1]
        [0.0, 0.0]
        >>> bag_of_words([["a"]], ["a", "b"]).tolist()
        [[1.0, 0.0]]
    """
    column = {word: index for index, word in enumerate(words)}
    counts = np.zeros((len(sentences), len(words)), np.float32)
    for row, sentence in enumerate(sentences):
        for word in sentence:
            if word in column:
                counts[row, column[word]] += 1
    length = np.sqrt(np.square(counts).sum(1, keepdims=True))
    return torch.from_numpy(counts / np.where(length > 0, length, 1))


def _sentences(path: Path) -> list[list[str]]:
    """The words of every line that has any."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            "the files rt-polarity.pos and rt-polarity.neg",
            f"the folder {str(path.parent)!r} without {path.name}",
            "put both into one folder and name that folder",
        ) from None
    except OSError as error:
        raise InputError(
            "a file that can be read", f"{str(path)!r} ({error.strerror})", "check its name and its permissions"
        ) from None
    if b"\0" in raw:
        raise InputError("a text file, one review a line", f"{str(path)!r} with zero bytes in it", "fetch it again")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # as the authors published it
    sentences = [line.split() for line in text.split("\n") if line.strip()]
    if not sentences:
        raise InputError("one review a line", f"{str(path)!r}, which is empty", "fetch it again")
    return sentences
