"""What measures of weights share: where a parameter lives, and a step's parameters from both sides."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.site import Port, Site
from holdfast.live.moment import Moment


class Weight(NamedTuple):
    """One parameter of a model at an optimiser step.

    Args:
        name: as `named_parameters` gives it.
        before: its value before the step, `None` where nobody kept it.
        now: the parameter, with the gradient that the step used unless that was cleared since.
    """

    name: str
    before: Tensor | None
    now: nn.Parameter


def weight_site(name: str, port: Port, stream: str = "net") -> Site:
    """Where a parameter lives.

    Args:
        name: as `named_parameters` gives it.
        port: which side of it.
        stream: which model.

    Returns:
        The site.

    Example:
        >>> str(weight_site("layer3.conv.weight", "update"))
        'net/layer3.conv:update[weight]#0@train'
    """
    module, _, leaf = name.rpartition(".")
    return Site(module, port, stream, leaf)


def weights_of(moment: Moment, names: Collection[str] | None = None) -> Iterator[Weight]:
    """The parameters of a moment that are trained, of real numbers, each once.

    Args:
        moment: one step.
        names: only these; all when `None`.

    Yields:
        Each with its value before the step, where that was kept.

    Raises:
        InputError: what was kept from before the step has another shape.
    """
    for name, parameter in moment.model.named_parameters():
        if (
            not parameter.requires_grad
            or not parameter.is_floating_point()
            or (names is not None and name not in names)
        ):
            continue
        before = None if moment.before is None else moment.before.get(name)
        if before is not None and before.shape != parameter.shape:
            raise InputError(
                f"{name!r} before the step in the shape that it has, {tuple(parameter.shape)}",
                f"a tensor of {tuple(before.shape)}",
                "type: before = {name: each.detach().clone() for name, each in model.named_parameters()}",
            )
        yield Weight(name, before, parameter)


def same_shape(first: Tensor, second: Tensor, what: str) -> None:
    """Refuse two tensors that cannot belong to one parameter.

    Args:
        first: one.
        second: the other.
        what: the two, in words.

    Raises:
        InputError: their shapes differ, or they hold nothing.
    """
    if first.shape != second.shape or not first.numel():
        raise InputError(
            f"{what} of one shape",
            f"shapes {tuple(first.shape)} and {tuple(second.shape)}",
            "give both of the same parameter",
        )
