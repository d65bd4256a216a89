from __future__ import annotations

from pathlib import Path

import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.lab.reviews import bag_of_words, frequent_words, read_reviews


def test_the_word_that_makes_a_review_good_marks_its_label(review_folder: Path) -> None:
    data = read_reviews(review_folder)
    assert (data.classes, data.features) == (2, 32)
    assert (len(data.inputs), len(data.probe), len(data.held_out)) == (352, 128, 120)
    # Columns are in the order of frequency: "good" or "bad" are the two that stand in half of the sentences each.
    column = next(index for index in range(32) if torch.equal(data.inputs[:, index] > 0, data.labels == 1))
    assert torch.equal(data.held_out[:, column] > 0, data.held_out_labels == 1)
    torch.testing.assert_close(data.inputs.norm(dim=1), torch.ones(352))


def test_the_vocabulary_is_capped_and_taken_from_the_training_part_alone(review_folder: Path) -> None:
    assert read_reviews(review_folder, vocabulary=7).features == 7
    pos = review_folder / "rt-polarity.pos"
    lines = pos.read_text().splitlines()
    pos.write_text("\n".join(f"{line} unique{number}" for number, line in enumerate(lines)))
    data = read_reviews(review_folder)
    # 32 common words and the unique ones of the good training sentences, not those of all 300.
    assert data.features == 32 + int(data.labels.sum())


def test_the_split_is_the_same_for_the_same_seed(review_folder: Path) -> None:
    first, again, other = (read_reviews(review_folder, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.held_out_labels, again.held_out_labels)
    assert not torch.equal(first.held_out_labels, other.held_out_labels)


def test_frequency_counts_sentences_not_words() -> None:
    assert frequent_words([["b", "b", "b"], ["a"], ["a"]], 1) == ["a"]


def test_counts_are_scaled_to_length_one() -> None:
    assert bag_of_words([["a", "a", "a", "b", "b", "b", "b", "z"]], ["a", "b"])[0].tolist() == pytest.approx([0.6, 0.8])


def test_the_authors_own_encoding_is_read(review_folder: Path) -> None:
    path = review_folder / "rt-polarity.pos"
    path.write_bytes(path.read_bytes().replace(b"good", "crédible".encode("latin-1")))
    assert read_reviews(review_folder).features == 32


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "rt-polarity.pos and rt-polarity.neg; got the folder .* without rt-polarity.neg"),
        (b"", "which is empty"),
        (b" \n\n", "which is empty"),
        (b"\x7fELF\0\0\1", "zero bytes"),
        (b"bad film\n", "at least 480 samples of reviews .*; got 301"),
    ],
)
def test_a_missing_or_damaged_file_is_one_sentence(review_folder: Path, content: bytes | None, says: str) -> None:
    path = review_folder / "rt-polarity.neg"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_reviews(review_folder)
