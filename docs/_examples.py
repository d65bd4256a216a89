"""Lets the reference show our `Example:` sections as code: the documentation's parser knows them in the plural."""

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the section in what the parser reads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every class, function and module."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")
