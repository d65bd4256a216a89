"""A small transformer on tiny-shakespeare, with post-normalisation, Adam and no warm-up.

Usage: python examples/tiny_shakespeare.py FILE, where FILE is the text (1.1 million characters).
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.treatments import WarmUp

CONTEXT, BATCH, WIDTH, DEPTH, RATE, STEPS = 32, 16, 48, 6, 1e-2, 200


class Transformer(nn.Module):
    """Characters in, logits of the next character out; the normalisers stand behind the sums, as in 2017."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.token = nn.Embedding(characters, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True)
            for _ in range(DEPTH)
        )
        self.head = nn.Linear(WIDTH, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, text: Tensor) -> Tensor:
        """`(samples, characters)` → logits `(samples, characters, alphabet)`."""
        stream = self.token(text) + self.place[: text.shape[1]]
        for block in self.blocks:
            stream = block(stream, src_mask=self.mask)
        logits: Tensor = self.head(stream)
        return logits


def batches(text: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of the text, shifted by one character: what is read and what comes next."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1), generator=generator)
        window = text[starts + torch.arange(CONTEXT + 1)]
        yield window[:, :-1], window[:, 1:]


def loss_fn(logits: Tensor, following: Tensor) -> Tensor:
    """Nats a character."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten())


def main() -> None:
    """Train, watch, diagnose, treat, prove, report."""
    raw = Path(sys.argv[1]).read_text(encoding="utf-8")
    known = sorted(set(raw))
    text = torch.tensor([known.index(each) for each in raw])
    training, held_out = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    torch.manual_seed(0)
    model = Transformer(len(known))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    stream = batches(held_out, seed=0)
    probe, judged = next(stream)[0], [next(stream) for _ in range(8)]

    with hf.watch(model, optimizer, run="runs/shakespeare", probe=probe, every=10) as run:
        for _, (read, following) in zip(range(STEPS), batches(training, seed=0), strict=False):
            loss = loss_fn(model(read), following)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    diagnosis = hf.diagnose(run)
    print(diagnosis)

    torch.manual_seed(0)  # the first steps did the damage: the proofs begin where the run began
    model = Transformer(len(known))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    prescription = hf.prescribe(diagnosis, model, optimizer, batch=probe)
    print(prescription)

    proofs = [
        hf.prove(
            plan,
            model,
            optimizer,
            lambda seed: batches(training, seed),
            loss_fn,
            eval_batches=judged,
            steps=STEPS,
            seeds=5,
        )
        for plan in (WarmUp(steps=STEPS // 2).plan(model, optimizer), prescription.plan)
    ]
    print(*proofs, sep="\n")
    print(run.report("shakespeare.html", evidence=proofs[0]))


if __name__ == "__main__":
    main()
