"""Tiny data sets in the formats of the real ones, written by the tests themselves."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.fixture(name="idx_bytes")
def _idx_bytes() -> Callable[[np.ndarray], bytes]:
    return idx_bytes


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """600 + 100 images of 4 × 4 pixels whose brightness grows with their label; the training part gzipped."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 600), ("t10k", 100)):
        labels = generator.integers(0, 10, count).astype(np.uint8)
        images = (labels[:, None, None] * 20 + generator.integers(0, 50, (count, 4, 4))).astype(np.uint8)
        for stem, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            raw = idx_bytes(array)
            if part == "train":
                (tmp_path / f"{stem}.gz").write_bytes(gzip.compress(raw))
            else:
                (tmp_path / stem).write_bytes(raw)
    return tmp_path


@pytest.fixture
def review_folder(tmp_path: Path) -> Path:
    """300 good and 300 bad sentences of made-up words."""
    generator = np.random.default_rng(1)
    common = [f"word{index}" for index in range(30)]
    for name, extra in (("pos", "good"), ("neg", "bad")):
        lines = [" ".join([extra, *generator.choice(common, 8)]) for _ in range(300)]
        (tmp_path / f"rt-polarity.{name}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path
