"""`Attentions`: which keys the queries of every attention look at, recomputed where the attention is one operation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from holdfast.core.site import Site
from holdfast.live.measurable import unmeasured
from holdfast.live.operations import SHAPING, operation_name
from holdfast.live.passage import Passage
from holdfast.live.tensors import storage_of, tensors_in

MOST_SCORES = 1 << 21
"""Scores of one attention that are computed at once, 8 MB; more queries than fit are sampled."""

# A mask adds −inf, the least number of a type, or −1e4 where half precision has to hold it.
_FORBIDDEN = -9e3
_SEED = 90_210
_MULTIPLYING = frozenset({"matmul", "bmm", "einsum", "baddbmm"})


@dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """Where the queries of one attention look, each among the keys that its mask allows.

    A query that has no choice, because fewer than two keys are allowed, has NaN in both.

    Args:
        site: the module in whose forward it is; `scores` is the leaf.
        largest: the largest probability of each query, `(samples, heads, queries)`.
        entropy: entropy of its probabilities over the greatest that the allowed keys make possible.
        queries: how many each sample and head has; `largest` may hold fewer, drawn at random.
    """

    site: Site
    largest: Float[Tensor, "samples heads rows"]
    entropy: Float[Tensor, "samples heads rows"]
    queries: int


class Attentions(Passage):
    """Follows one replay and computes the probabilities of every attention.

    `F.scaled_dot_product_attention` and `nn.MultiheadAttention` are computed again from their queries and keys, without
    dropout; of an attention written by hand the softmax is read whose result is multiplied with something.

    After `follow`:
        found: the attentions, in the order of execution.
        not_seen: a sentence for each that could not be computed again.

    Args:
        stream: the model's name in the run.
        most_scores: see `MOST_SCORES`.

    Example:
        >>> from torch import nn
        >>> from holdfast.live.replay import record_call
        >>> net, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(3, 5, 4)
        >>> attentions = Attentions()
        >>> _ = attentions.follow(net, record_call((x, x, x), {}))
        >>> [(str(each.site), tuple(each.largest.shape)) for each in attentions.found]
        [('net/:output[scores]#0@train', (3, 2, 5))]
    """

    def __init__(self, stream: str = "net", *, most_scores: int = MOST_SCORES) -> None:
        super().__init__()
        self.found: list[Attended] = []
        self.not_seen: list[str] = []
        self._stream, self._most = stream, most_scores
        self._calls: dict[str, int] = {}
        self._generator = torch.Generator().manual_seed(_SEED)
        self._softmaxes: dict[int, tuple[Tensor, Tensor]] = {}  # by storage, with what keeps the storage alive

    def before(self, function: Callable[..., Any], inputs: Any) -> Any:
        """Compute a fused attention again; tell the softmax of an attention by what becomes of it."""
        args, kwargs = inputs
        name = operation_name(function)
        if name in ("scaled_dot_product_attention", "multi_head_attention_forward"):
            build = _of_product if name == "scaled_dot_product_attention" else _of_multi_head
            with torch.no_grad(), _without_casting(tensors_in(inputs)):
                self._fused(name, build(*args, **kwargs))
        elif name in _MULTIPLYING:
            for tensor in tensors_in(inputs):
                kept = self._softmaxes.pop(storage_of(tensor), None)
                if kept is not None:
                    self._forget(kept[1])
                    self._written_out(kept[1])
        return None

    def after(self, function: Callable[..., Any], inputs: Any, output: Any, memo: Any) -> None:
        """Keep a softmax over the last axis until it is multiplied with something."""
        name = operation_name(function)
        results = tensors_in(output)
        if name == "softmax" and results and _over_last(results[0], *inputs):
            # read later: the queries are still to be chosen, and dropout may come first
            self._softmaxes[storage_of(results[0])] = results[0], results[0]
        elif name in SHAPING and self._softmaxes:
            kept = next(
                (self._softmaxes[key] for key in map(storage_of, tensors_in(inputs)) if key in self._softmaxes), None
            )
            if kept is not None:
                self._softmaxes.update((storage_of(each), (each, kept[1])) for each in results)

    def _forget(self, softmax: Tensor) -> None:
        for key in [key for key, (_, each) in self._softmaxes.items() if each is softmax]:
            del self._softmaxes[key]

    def _site(self) -> Site:
        path = self.stack[-1][0]
        self._calls[path] = self._calls.get(path, 0) + 1
        return Site(path, "output", self._stream, "scores", self._calls[path] - 1)

    def _fused(self, name: str, attention: _Attention | str) -> None:
        site = self._site()
        if isinstance(attention, str):
            self.not_seen.append(f"the attention scores inside {name} of {site.module or '(model)'}: {attention}")
            return
        q, k = attention.query, attention.key
        if not q.numel() or not k.numel():
            return
        samples, heads, queries, keys = *q.shape[:3], k.shape[2]
        chosen, rows = (each.to(q.device) for each in self._chosen(samples, heads, queries, keys))
        scores = q[chosen][:, :, rows].float() @ k[chosen].float().transpose(2, 3) * attention.scale
        allowed = torch.ones((), dtype=torch.bool, device=q.device)
        if attention.mask is not None:
            mask = attention.mask.expand(samples, heads, queries, keys)[chosen][:, :, rows]
            allowed = mask if mask.dtype is torch.bool else mask > _FORBIDDEN
            scores = scores if mask.dtype is torch.bool else scores + mask
        if attention.causal:
            allowed = allowed & (torch.arange(keys, device=q.device) <= rows[:, None])
        probabilities = scores.masked_fill(~allowed, -math.inf).softmax(-1)
        largest, entropy = _figures(probabilities, allowed.expand(scores.shape).sum(-1))
        if attention.padded is not None:
            blank = attention.padded[chosen][:, None, rows]
            largest, entropy = (each.masked_fill(blank, math.nan) for each in (largest, entropy))
        self.found.append(Attended(site, largest, entropy, queries))

    def _written_out(self, probabilities: Tensor) -> None:
        p = probabilities.detach().float()
        p = p.unsqueeze(1) if p.ndim == 3 else p.flatten(1, -3)
        if p.numel():
            chosen, rows = (each.to(p.device) for each in self._chosen(*p.shape))
            p = p[chosen][:, :, rows]
            self.found.append(Attended(self._site(), *_figures(p, (p > 0).sum(-1)), probabilities.shape[-2]))

    def _chosen(self, samples: int, heads: int, queries: int, keys: int) -> tuple[Tensor, Tensor]:
        """Which samples and which of their queries are read: all samples first."""
        fit = max(1, self._most // (heads * keys))
        return self._draw(samples, fit), self._draw(queries, max(1, fit // min(samples, fit)))

    def _draw(self, of: int, most: int) -> Tensor:
        if of <= most:
            return torch.arange(of)
        return torch.randperm(of, generator=self._generator)[:most].sort().values


@dataclass(frozen=True, slots=True, eq=False)
class _Attention:
    query: Tensor  # (samples, heads, queries, width)
    key: Tensor  # (samples, heads, keys, width)
    mask: Tensor | None  # what is added to the scores, or where a key is allowed
    scale: float
    causal: bool = False
    padded: Tensor | None = None  # (samples, queries) that are no queries


def _figures(p: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability, and the entropy over ln(allowed keys)."""
    free = allowed > 1
    entropy = -torch.xlogy(p, p).sum(-1) / allowed.clamp(min=2).log()
    return tuple(each.where(free, math.nan).cpu() for each in (p.amax(-1), entropy))  # type: ignore[return-value]


def _of_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> _Attention | str:
    """Of `F.scaled_dot_product_attention`, whose parameters these are."""
    reason = next(filter(None, map(unmeasured, (query, key))), None)
    if reason is not None or query.ndim < 2:
        return reason or "single values are not measured"
    if enable_gqa and query.ndim > 2:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    before = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])  # type: ignore[no-untyped-call]
    samples, heads = (before[0] if before else 1), math.prod(before[1:])
    q, k = (each.expand(*before, *each.shape[-2:]).reshape(samples, heads, *each.shape[-2:]) for each in (query, key))
    mask = attn_mask
    if mask is not None:
        mask = mask.expand(*before, q.shape[2], k.shape[2]).reshape(samples, heads, q.shape[2], k.shape[2])
    return _Attention(q, k, mask, query.shape[-1] ** -0.5 if scale is None else scale, is_causal)


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def _of_multi_head(*args: Any, **kwargs: Any) -> _Attention | str:
    """Of `F.multi_head_attention_forward`, which `nn.MultiheadAttention` is."""
    bound = _MULTI_HEAD.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    query, key, heads = given["query"], given["key"], given["num_heads"]
    if given["static_k"] is not None:
        return "its keys are given apart"
    if reason := next(filter(None, map(unmeasured, (query, key))), None):
        return reason
    padding = given["key_padding_mask"]
    itself = query is key
    if query.ndim == 2:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        padding = None if padding is None else padding.unsqueeze(0)
    if given["use_separate_proj_weight"]:
        weights = [given["q_proj_weight"], given["k_proj_weight"]]
    else:
        weights = given["in_proj_weight"].chunk(3)[:2]
    biases = [None, None] if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)[:2]
    q, k = (F.linear(x, w, b) for x, w, b in zip((query, key), weights, biases, strict=True))
    length, samples, width = q.shape
    added = [given["bias_k"].expand(1, samples, width)] if given["bias_k"] is not None else []
    added += [k.new_zeros(1, samples, width)] if given["add_zero_attn"] else []
    k = torch.cat([k, *added])
    q, k = (each.reshape(len(each), samples, heads, -1).permute(1, 2, 0, 3) for each in (q, k))
    mask = _merged(given["attn_mask"], padding, samples, heads, length, len(key), q.dtype)
    mask = mask if mask is None else F.pad(mask, (0, len(added)))
    padded = None if padding is None or not itself else _added(padding, q.dtype) <= _FORBIDDEN
    return _Attention(q, k, mask, q.shape[-1] ** -0.5, padded=padded)


def _merged(
    mask: Tensor | None, padding: Tensor | None, samples: int, heads: int, queries: int, keys: int, dtype: torch.dtype
) -> Tensor | None:
    """What both masks of an `nn.MultiheadAttention` add to the scores; where they are booleans, they forbid."""
    total = None
    if mask is not None:
        total = _added(mask, dtype)
        total = (
            total.expand(samples, heads, queries, keys)
            if total.ndim == 2
            else total.view(samples, heads, queries, keys)
        )
    if padding is not None:
        keys_only = _added(padding, dtype)[:, None, None, :]
        total = keys_only.expand(samples, heads, queries, keys) if total is None else total + keys_only
    return total


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype is torch.bool else mask


def _over_last(output: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return output.ndim >= 3 and output.is_floating_point() and dim in (-1, output.ndim - 1)


def _without_casting(tensors: list[Tensor]) -> torch.autocast:
    device = tensors[0].device.type if tensors else "cpu"
    return torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False)
