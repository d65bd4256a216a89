from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.lab.images import ImageSet, read_images


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_images_are_standardised_with_one_mean_and_one_deviation(image_folder: Path, name: ImageSet) -> None:
    data = read_images(image_folder, name)
    assert (data.name, data.features, data.classes) == (name, 16, 10)
    assert (len(data.inputs), len(data.probe), len(data.held_out)) == (600 - 128, 128, 100)
    trained = torch.cat([data.inputs, data.probe])
    assert float(trained.mean()) == pytest.approx(0, abs=1e-5)
    assert float(trained.std()) == pytest.approx(1, abs=1e-4)


def test_a_label_stays_with_its_image(image_folder: Path) -> None:
    data = read_images(image_folder, "mnist")
    for inputs, labels in ((data.inputs, data.labels), (data.held_out, data.held_out_labels)):
        brightness = inputs.mean(1)
        assert np.corrcoef(brightness.numpy(), labels.numpy())[0, 1] > 0.98  # as the fixture made them


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f, idx: (f / "t10k-labels-idx1-ubyte").unlink(), "the file t10k-labels-idx1-ubyte"),
        (
            lambda f, idx: (f / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(99, np.uint8))),
            "100 images and 99 labels of t10k",
        ),
        (
            lambda f, idx: (f / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(100, 17, np.uint8))),
            "labels from 0 to 9; got a label 17",
        ),
        (
            lambda f, idx: (f / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((100, 5, 4), np.uint8))),
            "of one size; got 4 × 4 and 5 × 4 pixels",
        ),
        (
            lambda f, idx: (f / "train-images-idx3-ubyte").write_bytes(idx(np.full((600, 4, 4), 51, np.uint8))),
            r"images that differ; got one constant \(0.2\)",
        ),
        (
            lambda f, idx: [
                (f / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 4, 4), np.uint8))),
                (f / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(0, np.uint8))),
            ],
            "at least one; got 0 images and 0 labels",
        ),
        (
            lambda f, idx: [
                (f / "train-images-idx3-ubyte").write_bytes(idx(np.eye(4, dtype=np.uint8)[None].repeat(99, 0))),
                (f / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(99, np.uint8))),
            ],
            "at least 384 samples of mnist .*; got 99",
        ),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    image_folder: Path,
    idx_bytes: Callable[[np.ndarray], bytes],
    change: Callable[[Path, Callable[[np.ndarray], bytes]], object],
    says: str,
) -> None:
    change(image_folder, idx_bytes)
    with pytest.raises(InputError, match=says):
        read_images(image_folder, "mnist")


def test_a_folder_that_is_not_there_or_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, says in (("gone", "does not exist"), ("file", "is a file")):
        with pytest.raises(InputError, match=rf"{says}; type: holdfast demo --data mnist DIR"):
            read_images(tmp_path / name, "mnist")
