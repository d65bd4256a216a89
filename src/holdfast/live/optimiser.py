"""The groups and the state of an optimiser, mended in place and put back.

The optimiser, its groups and their lists stay the same objects, because schedulers and scalers hold on to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Adagrad, Optimizer

from holdfast.core.errors import SurgeryError


def check_owner(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimiser of another model.

    Args:
        model: the model.
        optimizer: the optimiser.

    Raises:
        SurgeryError: it steps none of the model's parameters.
    """
    own = {id(parameter) for parameter in model.parameters()}
    held = (parameter for group in optimizer.param_groups for parameter in group["params"])
    if own and not any(id(parameter) in own for parameter in held):
        raise SurgeryError(
            "the optimiser that steps this model",
            f"a {type(optimizer).__name__} that holds none of its parameters",
            "give the optimiser that was built from model.parameters()",
        )


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimiser whose state cannot be mended parameter by parameter.

    Args:
        model: the model.
        optimizer: the optimiser.

    Raises:
        SurgeryError: it steps none of the model's parameters, holds one twice, or keeps state of all together.
    """
    check_owner(model, optimizer)
    kind = type(optimizer).__name__
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = {id(parameter) for parameter in held}
    if len(known) < len(held):
        raise SurgeryError(
            "an optimiser that holds each parameter once",
            f"a {kind} that holds {len(held) - len(known)} of them in a second place",
            "build it again with each parameter in one group",
        )
    stray = any(not isinstance(key, Tensor) or id(key) not in known for key in optimizer.state)
    if stray or isinstance(optimizer, LBFGS):
        raise SurgeryError(
            "an optimiser that keeps its state parameter by parameter",
            f"a {kind}, which keeps state of all parameters together",
            "give optimizer=None and build the optimiser again afterwards",
        )


def forget(optimizer: Optimizer | None, parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
    """Drop what an optimiser remembers of some parameters (momenta, step counts), as if it had never stepped them.

    Args:
        optimizer: the optimiser, or `None`.
        parameters: whose state is dropped.

    Returns:
        A call that puts the dropped state back, the same objects in the same order.

    Example:
        >>> import torch
        >>> weight = nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> put_back = forget(optimizer, [weight])
        >>> len(optimizer.state)
        0
        >>> put_back()
        >>> optimizer.state[weight]["step"]
        tensor(1.)
    """
    if optimizer is None:
        return lambda: None
    before = dict(optimizer.state)
    dropped = set(parameters)

    def put_back() -> None:
        _set_state(optimizer, before, dropped)

    try:
        for parameter in dropped:
            optimizer.state.pop(parameter, None)
            _begin(optimizer, parameter)
    except BaseException:
        put_back()
        raise
    return put_back


def _begin(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Give a parameter the state that its optimiser gives at construction; most make it at the first step."""
    groups = [group for group in optimizer.param_groups if any(each is parameter for each in group["params"])]
    if isinstance(optimizer, Adagrad) and groups:
        settings = {name: groups[0].get(name, value) for name, value in optimizer.defaults.items()}
        optimizer.state[parameter] = Adagrad([parameter], **settings).state[parameter]


def _set_state(optimizer: Optimizer, before: Mapping[Any, Any], dropped: set[nn.Parameter]) -> None:
    """The state as it was for dropped parameters, as it is now for all others, in the order that it had."""
    present = {parameter: state for parameter, state in optimizer.state.items() if parameter not in dropped}
    kept = {key: before[key] if key in dropped else present.get(key) for key in before}
    ordered = {key: state for key, state in kept.items() if state is not None}
    optimizer.state.clear()
    optimizer.state.update({**ordered, **present})


class Groups:
    """The groups and the state of an optimiser as they were before a surgery, and as it left them.

    Args:
        optimizer: the optimiser, or `None`: then all calls do nothing.
    """

    def __init__(self, optimizer: Optimizer | None) -> None:
        self._optimizer = optimizer
        groups = [] if optimizer is None else optimizer.param_groups
        self._before = [_lists(group) for group in groups]
        self._after = list(self._before)
        self._state = {} if optimizer is None else dict(optimizer.state)
        self._touched: set[nn.Parameter] = set()

    def mend(
        self, model: nn.Module, exchanged: Sequence[tuple[nn.Module, nn.Module]], names: Mapping[int, str]
    ) -> tuple[str, ...]:
        """Let the optimiser step what came and forget what went.

        Args:
            model: after the exchange.
            exchanged: old and new module of each place.
            names: name of each parameter before the exchange, by identity.

        Returns:
            One line for each change.
        """
        optimizer = self._optimizer
        if optimizer is None:
            return ()
        present = {id(parameter): name for name, parameter in model.named_parameters()}
        order = {key: place for place, key in enumerate(present)}
        gone = {parameter for old, _ in exchanged for parameter in old.parameters() if id(parameter) not in present}
        came = self._assign(model, exchanged)
        self._touched = gone | set(came)
        lines = []
        for index, (group, (held, held_names)) in enumerate(zip(optimizer.param_groups, self._before, strict=True)):
            kept = [
                (parameter, name if names.get(id(parameter)) != name else present[id(parameter)])
                for parameter, name in zip(held, held_names or ("",) * len(held), strict=True)
                if parameter not in gone
            ]
            for parameter in sorted((each for each, home in came.items() if home == index), key=lambda p: order[id(p)]):
                later = (i for i, (each, _) in enumerate(kept) if order.get(id(each), -1) > order[id(parameter)])
                kept.insert(next(later, len(kept)), (parameter, present[id(parameter)]))
                lines.append(f"optimiser group {index}: none → {present[id(parameter)]}")
            lines += [f"optimiser group {index}: {names[id(each)]} → none" for each in held if each in gone]
            group["params"][:] = [parameter for parameter, _ in kept]
            if held_names is not None:
                group["param_names"][:] = [name for _, name in kept]
        for parameter in gone:
            optimizer.state.pop(parameter, None)
        for parameter in came:
            _begin(optimizer, parameter)
        self._after = [_lists(group) for group in optimizer.param_groups]
        return tuple(lines)

    def _assign(self, model: nn.Module, exchanged: Sequence[tuple[nn.Module, nn.Module]]) -> dict[nn.Parameter, int]:
        """The group that each new parameter enters; those whose old neighbours are not stepped are not either."""
        home = {id(parameter): index for index, (held, _) in enumerate(self._before) for parameter in held}
        came: dict[nn.Parameter, int] = {}
        everything = list(model.parameters())
        for old, new in exchanged:
            namesakes = dict(old.named_parameters())
            for name, parameter in new.named_parameters():
                if id(parameter) in home or any(parameter is each for each in namesakes.values()):
                    continue
                if name in namesakes:
                    neighbours = [namesakes[name]]
                elif namesakes:
                    neighbours = list(namesakes.values())
                else:  # an activation: the nearest parameters before it, then those after it
                    here = next(place for place, each in enumerate(everything) if each is parameter)
                    neighbours = everything[:here][::-1] + everything[here + 1 :]
                stepped = [each for each in neighbours if id(each) in home]
                # Vectors go with vectors: scripts that keep weight decay off biases keep it off γ and β.
                alike = [each for each in stepped if (each.ndim > 1) == (parameter.ndim > 1)]
                if stepped:
                    came[parameter] = home[id((alike or stepped)[0])]
        return came

    def check(self) -> None:
        """See that nobody changed the groups since.

        Raises:
            SurgeryError: somebody did; nothing is changed.
        """
        if self._optimizer is None:
            return
        present = [_lists(group) for group in self._optimizer.param_groups[: len(self._after)]]
        same = len(present) == len(self._after) and all(
            len(now[0]) == len(then[0]) and all(a is b for a, b in zip(now[0], then[0], strict=True))
            for now, then in zip(present, self._after, strict=True)
        )
        if not same:
            raise SurgeryError(
                "the optimiser's groups as the treatment left them",
                "groups whose parameters were changed since",
                "undo the later change first",
            )

    def restore(self) -> None:
        """Put lists and state back; groups added at the end since stay."""
        if self._optimizer is None:
            return
        for group, (held, held_names) in zip(self._optimizer.param_groups, self._before, strict=False):
            group["params"][:] = held
            if held_names is not None:
                group["param_names"][:] = held_names
        _set_state(self._optimizer, self._state, self._touched)


def _lists(group: Mapping[str, Any]) -> tuple[list[nn.Parameter], list[str] | None]:
    names = group.get("param_names")
    return list(group["params"]), None if names is None else list(names)
