"""`Followed`: whose output goes, as it is, into which layer alone; found on a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from holdfast.core.errors import HoldfastError, InputError
from holdfast.live.flow import Flow
from holdfast.live.replay import Mode
from holdfast.treatments.change import Batch, call_of, rerun
from holdfast.treatments.places import paths_of


class Followed:
    """The data's flow on a batch, from layers of some kinds into normalisers of some kinds.

    Args:
        model: the model.
        batch: what it is called with; the calls leave no trace.
        layers: classes of the layers asked about.
        norms: classes of what may stand behind them.
        words: how a person calls the latter.
        mode: in which the model runs.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3))
        >>> followed = Followed(model, torch.ones(4, 2), (nn.Linear,), (nn.BatchNorm1d,), "BatchNorm")
        >>> followed.behind("0", model[0]) is model[1], followed.behind("2", model[2])
        (True, 'its output does not go into one BatchNorm alone')
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        layers: tuple[type[nn.Module], ...],
        norms: tuple[type[nn.Module], ...],
        words: str,
        *,
        mode: Mode = "as it was",
    ) -> None:
        self._model, self._norms, self._words = model, norms, words
        self._inputs: dict[int, Tensor] = {}
        self._direct = self._handed_on(batch, layers, mode)
        self._flow = Flow(model)
        try:
            self._flow.follow(model, call_of(batch), mode=mode)
        except HoldfastError:
            raise
        except Exception as error:
            raise InputError(
                "a model whose flow can be followed",
                f"one that raises {type(error).__name__} meanwhile: {error}",
                "leave the model as it is",
            ) from error

    def behind(self, path: str, module: nn.Module) -> nn.Module | str:
        """The normaliser that alone takes a layer's output, or why there is none.

        Args:
            path: of the layer.
            module: the layer.

        Returns:
            The normaliser, or the reason in words.
        """
        calls, functional = self._flow.calls, self._flow.functional
        if not calls.get(path):
            return "it did not run on the batch"
        takers = self.takers(path)
        target, norm = next(iter(takers.items()), ("", None))
        if len(takers) > 1 or not isinstance(norm, self._norms):
            return f"its output does not go into one {self._words} alone"
        if any(call.producer == path and call.owner != target for call in functional):
            return "a function takes its output too"
        if (id(module), id(norm)) not in self._direct:
            return f"something stands between it and {target}"
        if calls[path] > 1 or calls[target] > 1:
            return "it or the normaliser behind it runs several times"
        if isinstance(module, nn.Linear) and self._inputs[id(norm)].ndim != 2:
            return f"{target} does not take its output as samples × features"
        return norm

    def takers(self, path: str) -> dict[str, nn.Module]:
        """The layers that the output of a layer goes into, perhaps through functions, by path.

        Args:
            path: of the layer.

        Returns:
            None where it did not run.
        """
        return {target: self._model.get_submodule(target) for source, target in self._flow.edges if source == path}

    def used_elsewhere(self, module: nn.Module) -> bool:
        """Whether an operation outside of a module's own forward took one of its parameters.

        Args:
            module: a layer.

        Returns:
            The answer for this batch.
        """
        own = set(paths_of(self._model, module))
        return any(self._flow.used.get(id(each), own) - own for each in module.parameters(recurse=False))

    def _handed_on(self, batch: Batch, layers: tuple[type[nn.Module], ...], mode: Mode) -> set[tuple[int, int]]:
        """Layer and normaliser where the very tensor that the one gave came to the other, unchanged."""
        # the tensors are kept, so that no identity is used twice
        given: dict[int, tuple[Tensor, int, nn.Module]] = {}
        found: set[tuple[int, int]] = set()

        def left(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                given[id(output)] = (output, output._version, module)

        def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for each in (*args, *kwargs.values()):
                tensor, version, layer = given.get(id(each), (None, 0, module))
                if tensor is not None and tensor._version == version:
                    found.add((id(layer), id(module)))
                    self._inputs[id(module)] = tensor

        handles = []
        for module in self._model.modules():
            if type(module) in layers:
                handles.append(module.register_forward_hook(left))
            elif isinstance(module, self._norms):
                handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
        try:
            rerun(self._model, call_of(batch), mode)
        finally:
            for handle in handles:
                handle.remove()
        return found
