"""MNIST and Fashion-MNIST from the four IDX files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.lab.dataset import Dataset, split
from holdfast.lab.folder import existing_folder
from holdfast.lab.idx import find_idx, read_idx

ImageSet = Literal["mnist", "fashion-mnist"]

_SOURCES: dict[ImageSet, str] = {
    "mnist": "MNIST, handwritten digits",
    "fashion-mnist": "Fashion-MNIST, pictures of clothes",
}


def read_images(folder: Path, name: ImageSet, *, seed: int = 0) -> Dataset:
    """Read MNIST or Fashion-MNIST: `train-images-idx3-ubyte[.gz]` and its three companions.

    Pixels are standardised with one mean and one standard deviation, those of all pixels of the training images.

    Args:
        folder: that holds the four files, gzipped or not.
        name: which of the two; the files of both carry the same names.
        seed: of the choice of the probe.

    Returns:
        The training images less the probe's 128; the test images are the held-out part.

    Raises:
        InputError: a file is missing or damaged, or images and labels do not fit together.
    """
    folder = existing_folder(folder, name)
    inputs, labels, shape = _pair(folder, "train")
    held_out, held_out_labels, held_out_shape = _pair(folder, "t10k")
    if shape != held_out_shape:
        raise InputError(
            "training and test images of one size",
            f"{shape[0]} × {shape[1]} and {held_out_shape[0]} × {held_out_shape[1]} pixels",
            "put the four files of one data set into the folder",
        )
    mean, sd = float(inputs.mean()), float(inputs.std())
    if float(inputs.min()) == float(inputs.max()):
        raise InputError("images that differ", f"one constant ({mean:g}) in all of them", "point at the whole data set")
    for each in (inputs, held_out):
        each.sub_(mean).div_(sd)  # in place: 60,000 images are 188 MB
    part = split(len(inputs), name=name, held_out=0.0, seed=seed)
    return Dataset(
        name=name,
        source=f"{_SOURCES[name]}, {shape[0]} × {shape[1]} pixels",
        classes=10,
        inputs=inputs[part.train],
        labels=labels[part.train],
        probe=inputs[part.probe],
        held_out=held_out,
        held_out_labels=held_out_labels,
    )


def _pair(
    folder: Path, part: Literal["train", "t10k"]
) -> tuple[Float[Tensor, "samples pixels"], Int64[Tensor, " samples"], tuple[int, int]]:
    """Images in [0, 1] as rows, their labels, and the images' height and width."""
    path = find_idx(folder, f"{part}-images-idx3-ubyte")
    images = read_idx(path, axes=3)
    labels = read_idx(find_idx(folder, f"{part}-labels-idx1-ubyte"), axes=1)
    if len(images) != len(labels) or images.size == 0:
        raise InputError(
            "as many labels as images, and at least one",
            f"{len(images):,} images and {len(labels):,} labels of {part} in {str(folder)!r}",
            "put the four files of one data set into the folder",
        )
    if int(labels.max()) > 9:
        raise InputError(
            "labels from 0 to 9", f"a label {int(labels.max())} among those of {part}", "check which data set it is"
        )
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels /= 255
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)), (images.shape[1], images.shape[2])
