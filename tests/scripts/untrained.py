"""Never trains: argues with argparse, and reads a file beside the folder that it runs in."""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--size", type=int, default=3)
parser.add_argument("--torch", action="store_true")
args = parser.parse_args()
if args.torch:
    import torch

    model = torch.nn.Linear(args.size, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
print(args.size, Path("notes.txt").read_text() if Path("notes.txt").exists() else "no notes")
