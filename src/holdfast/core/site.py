"""`Site`: one place in a network where a tensor flows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args
from urllib.parse import quote, unquote

from holdfast.core.errors import InputError

Port = Literal["input", "output", "grad_output", "weight", "weight_grad", "update"]
Phase = Literal["train", "eval", "probe", "recompute"]

PORTS: tuple[Port, ...] = get_args(Port)
PHASES: tuple[Phase, ...] = get_args(Phase)

# Everything that carries meaning in the text form is percent-escaped inside a name.
_PLAIN = " !$&'()*+,;=~|<>{}^`\\\"?"
_TEXT = re.compile(
    r"(?P<stream>[^/]*)/(?P<module>[^:]*):(?P<port>[a-z_]+)"
    r"(?:\[(?P<leaf>[^\]]*)\])?#(?P<call>\d+)@(?P<phase>[a-z]+)"
)


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place where a tensor flows: which model, which module, which side, which call, which phase.

    Args:
        module: path of the module as `named_modules` gives it; `""` is the root.
        port: which tensor of the module.
        stream: name of the model, `"net"` when there is one.
        leaf: path inside a nested value (`"0.hidden"`), or the name of a parameter; `""` when the value is
            one tensor.
        call: how many times the module had run before in the same step.
        phase: what the network was doing.

    Example:
        >>> site = Site("layer3.0.conv1", "input")
        >>> str(site)
        'net/layer3.0.conv1:input#0@train'
        >>> Site.parse(str(site)) == site
        True
        >>> str(Site("fc", "weight_grad", leaf="weight"))
        'net/fc:weight_grad[weight]#0@train'
    """

    module: str
    port: Port
    stream: str = "net"
    leaf: str = ""
    call: int = 0
    phase: Phase = "train"

    def __str__(self) -> str:
        leaf = f"[{quote(self.leaf, safe=_PLAIN)}]" if self.leaf else ""
        return (
            f"{quote(self.stream, safe=_PLAIN)}/{quote(self.module, safe=_PLAIN)}"
            f":{self.port}{leaf}#{self.call}@{self.phase}"
        )

    @property
    def label(self) -> str:
        """The short name for a person: module, with port, leaf and call only where they tell something."""
        text = self.module or "(model)"
        if self.leaf:
            text += f".{self.leaf}"
        if self.call:
            text += f" (call {self.call})"
        return text

    def at(self, **changes: object) -> Site:
        """The site with some fields changed: `site.at(port="output")`."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read the text form back.

        Args:
            text: what `str(site)` gave.

        Returns:
            The same site.

        Raises:
            InputError: the text is not a site's.
        """
        match = _TEXT.fullmatch(text)
        if match is None or match["port"] not in PORTS or match["phase"] not in PHASES:
            raise InputError(
                "a site such as 'net/layer3.0.conv1:input#0@train'",
                repr(text),
                "list a run's sites with: holdfast diagnose RUN --json",
            )
        return cls(
            module=unquote(match["module"]),
            port=match["port"],
            stream=unquote(match["stream"]),
            leaf=unquote(match["leaf"] or ""),
            call=int(match["call"]),
            phase=match["phase"],
        )
