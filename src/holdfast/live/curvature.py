"""`curvature`: the Hessian or the Gauss–Newton matrix of a model's loss as an operator that multiplies vectors."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from holdfast.core.errors import InputError
from holdfast.live.objective import Forward, Objective, graph_of, norm

Kind = Literal["hessian", "gauss-newton"]

_TRIALS = 3
"""Directions along which a product is checked, until one of them meets no kink."""

_NAMES_OPERATION = re.compile(
    r"derivative for '?(?P<a>[\w:.]+)'? is not implemented|(?P<b>[\w:.]+) does not support double backward"
)


class Operator(Protocol):
    """A symmetric matrix that is never written down."""

    shape: tuple[int, int]

    def __matmul__(self, vector: Tensor) -> Tensor:
        """The product with a vector."""
        ...


_FORMULA = SDPBackend.MATH

_KNOWN = {"WeightNormInterface"}
"""Operations of torch whose second derivative is wrong: the norm that the kernel kept is taken as a constant."""


@contextmanager
def curvature(objective: Objective, kind: Kind = "hessian") -> Iterator[Operator]:
    """Multiply the curvature at the model's parameters onto vectors, within the block.

    One forward and backward pass serves all products; each costs about two backward passes more, and four passes
    check the first of them against small moves of the parameters. The operator is curvlinops', its products are in
    reverse mode: its own differentiate gradients forwards, which torch refuses for many operations and does wrongly,
    without a word, for a LayerNorm with gains.

    Args:
        objective: the loss.
        kind: `"hessian"`, or `"gauss-newton"`: Jᵀ (∇²_f ℓ) J with the model's output f, positive semi-definite for a
            convex loss ℓ.

    Yields:
        An operator; `operator @ vector` with the parameters as one flat vector.

    Raises:
        InputError: curvlinops is not installed; the parameters have several types or devices; an operation on the way
            cannot be differentiated twice (it is named); for Gauss–Newton, a loss without curvature in the output.
    """
    operators = _operators()
    places = {(each.dtype, each.device) for each in objective.parameters}
    if len(places) > 1:
        raise InputError(
            "parameters of one type on one device",
            " and ".join(sorted(f"{dtype} on {device}" for dtype, device in places)),
            "type: model.to('cpu', torch.float32)",
        )
    with ExitStack() as stack:
        # The fused kernels of attention and of cuDNN's recurrent layers have no second derivative; formulas have.
        stack.enter_context(sdpa_kernel(_FORMULA))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        passage = stack.enter_context(objective.forward())
        with _naming_operations(passage):
            product = (_hessian if kind == "hessian" else _gauss_newton)(objective, passage)
        yield operators[kind](objective, passage, product)


Product = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def _hessian(objective: Objective, passage: Forward) -> Product:
    """V → ∇⟨∇L, V⟩."""
    leaves, _, loss = passage
    gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    moving = [k for k, each in enumerate(gradient) if each.requires_grad]

    def product(vector: Sequence[Tensor]) -> Sequence[Tensor]:
        if not moving:  # a loss that is linear in the parameters
            return [torch.zeros_like(each) for each in leaves]
        with _naming_operations(passage):
            return torch.autograd.grad(
                [gradient[k] for k in moving],
                leaves,
                [vector[k] for k in moving],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )

    _check(objective, passage, product, _gradient)
    return product


def _gauss_newton(objective: Objective, passage: Forward) -> Product:
    """V → Jᵀ (∇²_f ℓ) J V; the gradient of ⟨Jᵀ w, V⟩ by w is J V."""
    leaves, output, _ = passage
    flat, layout = tree_flatten(output)
    places = [k for k, each in enumerate(flat) if isinstance(each, Tensor) and each.requires_grad]
    f = [flat[k] for k in places]
    for k in places:
        flat[k] = flat[k].detach().requires_grad_()
    own = [flat[k] for k in places]
    slope = torch.autograd.grad(
        objective.loss_of(tree_unflatten(flat, layout)),
        own,
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    bent = [k for k, each in enumerate(slope) if each.requires_grad]
    if not bent:
        raise InputError(
            "a loss with curvature in the model's output",
            "one that is linear in it: its Gauss–Newton matrix is zero",
            "take the Hessian, or let the model return its predictions and loss_fn compare them with the targets",
        )
    w = [torch.zeros_like(each, requires_grad=True) for each in f]
    transposed = torch.autograd.grad(f, leaves, w, create_graph=True, allow_unused=True, materialize_grads=True)
    moving = [k for k, each in enumerate(transposed) if each.requires_grad]

    def forwards(vector: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(
            [transposed[k] for k in moving],
            w,
            [vector[k] for k in moving],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def product(vector: Sequence[Tensor]) -> Sequence[Tensor]:
        with _naming_operations(passage):
            jv = forwards(vector)
            hjv = torch.autograd.grad(
                [slope[k] for k in bent],
                own,
                [jv[k] for k in bent],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return torch.autograd.grad(f, leaves, hjv, retain_graph=True, allow_unused=True, materialize_grads=True)

    _check(objective, passage, forwards, lambda other: [tree_flatten(other.output)[0][k] for k in places])
    return product


def _gradient(passage: Forward) -> Sequence[Tensor]:
    return torch.autograd.grad(passage.loss, passage.parameters, allow_unused=True, materialize_grads=True)


def _operators() -> dict[str, Callable[[Objective, Forward, Product], Operator]]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # what it imports uses TorchScript
            from curvlinops import GGNLinearOperator, HessianLinearOperator
    except ImportError as error:
        raise InputError("curvlinops", "a Python without it", "type: pip install 'holdfast[landscape]'") from error

    def made(base: Any) -> Callable[[Objective, Forward, Product], Operator]:
        class Curvature(base):  # type: ignore[misc]
            """One batch: its inputs and targets are already in the graph that `product` goes through."""

            def __init__(self, objective: Objective, passage: Forward, product: Product) -> None:
                self._product = product
                mean = torch.nn.MSELoss()  # only asked for its reduction
                batch: tuple[dict[str, Tensor], Tensor] = ({}, torch.empty(0))
                super().__init__(
                    objective.model,
                    mean,
                    list(passage.parameters),
                    [batch],
                    check_deterministic=False,
                    num_data=1,
                    batch_size_fn=lambda _: 1,
                )

            def _matmat_batch(self, X: object, y: object, M: list[Tensor]) -> list[Tensor]:
                columns = [self._product(column) for column in zip(*(each.unbind(-1) for each in M), strict=True)]
                return [torch.stack(each, -1).detach() for each in zip(*columns, strict=True)]

        return Curvature

    return {"hessian": made(HessianLinearOperator), "gauss-newton": made(GGNLinearOperator)}


@contextmanager
def _naming_operations(passage: Forward) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        named = _NAMES_OPERATION.search(text)
        if named:
            name = named["a"] or named["b"]
        elif "differentiate twice" in text or "once_differentiable" in text:
            name = _suspects(passage.loss)
        else:
            raise
        raise InputError(
            "operations that can be differentiated twice",
            f"{name}, which cannot",
            "replace it while measuring curvature; landscape(…), from gradients alone, needs no second derivative",
        ) from error


def _check(
    objective: Objective, passage: Forward, product: Product, seen: Callable[[Forward], Sequence[Tensor]]
) -> None:
    """Refuse an operation that torch differentiates twice without a word, and wrongly.

    Such are an `autograd.Function` whose backward is computed beside the graph, one marked @once_differentiable, fused
    kernels that keep a norm without its graph. Along a random direction the product is compared with the change of
    what it should be the derivative of. Where differences over two lengths agree with each other (neither a kink nor
    rounding between them) but not with the product, the product is wrong.
    """
    eps = torch.finfo(passage.parameters[0].dtype).eps
    generator = torch.Generator().manual_seed(0)
    for _ in range(_TRIALS):
        direction = [torch.randn(each.shape, generator=generator).to(each) for each in passage.parameters]
        short = math.sqrt(eps) * max(1.0, norm(passage.parameters)) / norm(direction)
        near, far = (_difference(objective, direction, length, seen) for length in (short, 4 * short))
        size = norm(near)
        if not _gap(near, far) < 0.01 * size:
            continue
        if _gap(near, [each.detach() for each in product(direction)]) > 0.05 * size:
            raise InputError(
                "operations that torch differentiates twice correctly",
                f"{_suspects(passage.loss)}: the derivative differs from what small moves of the parameters show",
                "write it with plain torch functions; landscape(…) needs no second derivative",
            )
        return


def _difference(
    objective: Objective, direction: Sequence[Tensor], length: float, seen: Callable[[Forward], Sequence[Tensor]]
) -> list[Tensor]:
    ends = []
    for sign in (1.0, -1.0):
        with objective.forward(objective.along(direction, sign * length)) as passage:
            ends.append([each.detach() for each in seen(passage)])
    return [(a - b) / (2 * length) for a, b in zip(*ends, strict=True)]


def _gap(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return norm([a - b for a, b in zip(first, second, strict=True)])


def _suspects(loss: Tensor) -> str:
    """What may be wrong: functions that somebody wrote, or else every operation on the way."""
    nodes = graph_of(loss)
    own = [node for node in nodes if isinstance(node, torch.autograd.function.BackwardCFunction)]
    names = dict.fromkeys(type(node).__name__.split("Backward")[0] for node in own or nodes)
    known = [name for name in names if name in _KNOWN]
    if own or known:
        return ", ".join(known or names)
    return f"one of {', '.join(name for name in names if name != 'AccumulateGrad')}"
