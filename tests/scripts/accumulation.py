"""Gradient accumulation under autocast, as scripts for language models do it, with clipping and decay groups."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # counts only when it is set before torch is loaded

import torch
from report import digest
from torch import nn
from torch.nn import functional as F

torch.manual_seed(1337)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Dropout(0.1))

    def forward(self, x):
        y = self.ln_1(x)
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf")), 1)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary=17, width=16):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.h = nn.ModuleList([Block(width) for _ in range(2)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        x = self.wte(idx)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


model = GPT()
decay = [p for p in model.parameters() if p.dim() >= 2]
rest = [p for p in model.parameters() if p.dim() < 2]
optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3)
scaler = torch.amp.GradScaler("cpu", enabled=False)
accumulate = 3

for iteration in range(12):
    for micro in range(accumulate):
        batch = torch.randint(0, 17, (6, 9))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, loss = model(batch[:, :-1], batch[:, 1:])
            loss = loss / accumulate
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if iteration % 4 == 0:
        model.eval()
        with torch.no_grad():
            print(f"iter {iteration}: loss {model(batch[:, :-1], batch[:, 1:])[1].item():.4f}")
        model.train()

print(torch.get_num_threads(), digest(model))
