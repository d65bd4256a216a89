"""Small pictures of a specification: the cells of a cube that share a statistic, in booleans and in text."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from holdfast.norms.spec import NormSpec

SIZE = (4, 6, 6)
"""Samples, channels and positions of the cube: enough for two groups of channels and two chunks of samples."""

_WORDS = ("samples", "channels", "positions")


def sketch(spec: NormSpec) -> Bool[Tensor, "samples channels positions"]:
    """The cells that share a statistic with the first one, with groups and chunks drawn as two.

    Args:
        spec: of any size; 32 groups of 64 channels are drawn as 2 groups of 6.

    Returns:
        A cube of `SIZE`; see `NormSpec.cells`.

    Example:
        >>> spec = NormSpec("group", over=("channels", "positions"), groups=32)
        >>> sketch(spec)[0, :, 0].tolist()
        [True, True, True, False, False, False]
    """
    return _small(spec).cells(*SIZE)


def text_sketch(spec: NormSpec) -> str:
    """The same in text: for each axis how far the cells reach that share a statistic with the first one.

    Args:
        spec: any.

    Returns:
        Three lines; three for each part of a mix, under its name.

    Example:
        >>> print(text_sketch(NormSpec("instance", over=("positions",))))
        samples    ■ □ □ □
        channels   ■ □ □ □ □ □
        positions  ■ ■ ■ ■ ■ ■
    """
    if spec.mix:
        return "\n".join(f"{part.name}\n{_indented(text_sketch(part))}" for part in spec.mix)
    if not spec.over:
        return "no statistic: each value by itself"
    cells = sketch(spec)
    lines = []
    for axis, word in enumerate(_WORDS):
        reached = cells.movedim(axis, 0).flatten(1).any(1).tolist()
        lines.append(f"{word:<9}  {' '.join('■' if each else '□' for each in reached)}")
    return "\n".join(lines)


def _small(spec: NormSpec) -> NormSpec:
    mix = tuple(_small(part) for part in spec.mix)
    return replace(spec, groups=min(spec.groups, 2), chunk=min(spec.chunk, 2), mix=mix)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
