"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import torch

from holdfast.core.errors import InputError
from holdfast.lab.dataset import Dataset, split


def read_digits(*, seed: int = 0) -> Dataset:
    """The 1,797 digits of 8 × 8 pixels that scikit-learn carries.

    Each pixel is standardised with the mean and the standard deviation of the training part; pixels that never
    change there stay 0.

    Args:
        seed: of the split.

    Returns:
        1,310 digits to train on, 128 for the probe, 359 held out.

    Raises:
        InputError: scikit-learn is not installed.

    Example:
        >>> digits = read_digits()
        >>> digits.features, digits.classes, len(digits.labels)
        (64, 10, 1310)

    References:
        E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "scikit-learn, which carries the digits", "none installed", "type: pip install 'holdfast[lab]'"
        ) from None
    pixels, digits = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels).float()
    labels = torch.from_numpy(digits).long()
    part = split(len(inputs), name="digits", seed=seed)
    mean, sd = inputs[part.train].mean(0), inputs[part.train].std(0)
    inputs = (inputs - mean) / torch.where(sd > 0, sd, 1.0)
    inputs[:, sd == 0] = 0.0
    return Dataset(
        name="digits",
        source="handwritten digits, 8 × 8 pixels, from scikit-learn",
        classes=10,
        inputs=inputs[part.train],
        labels=labels[part.train],
        probe=inputs[part.probe],
        held_out=inputs[part.held_out],
        held_out_labels=labels[part.held_out],
    )
