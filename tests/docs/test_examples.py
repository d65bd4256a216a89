"""The scripts in `examples/` run to their end, on small made-up data and with a few steps."""

import gzip
import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, argument, monkeypatch, folder, **smaller):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for constant, value in smaller.items():
        assert hasattr(module, constant)
        monkeypatch.setattr(module, constant, value)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [name, str(argument)])
    module.main()


def idx(path, values):
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.mark.slow
def test_fashion_mnist(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    for part, count in (("train", 600), ("t10k", 600)):
        labels = np.arange(count) % 10
        pictures = generator.integers(0, 60, (count, 28, 28)) + 19 * labels[:, None, None]
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", pictures)
        idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    run("fashion_mnist", tmp_path, monkeypatch, tmp_path, STEPS=60)
    assert "verdict: " in capsys.readouterr().out
    assert (tmp_path / "fashion.html").stat().st_size > 100_000


@pytest.mark.slow
def test_tiny_shakespeare(tmp_path, monkeypatch, capsys):
    text = tmp_path / "input.txt"
    text.write_text("To be, or not to be, that is the question:\n" * 100)
    run("tiny_shakespeare", text, monkeypatch, tmp_path, STEPS=20, DEPTH=2, WIDTH=8)
    assert "warm-up: " in capsys.readouterr().out
    assert (tmp_path / "shakespeare.html").stat().st_size > 100_000
