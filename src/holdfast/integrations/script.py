"""`Script`: runs a user's script as `python` would, with a watch that waits for PyTorch to be imported.

Uses the standard library only: what the script sets before its own `import torch` (threads, devices) must still count.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from holdfast.integrations.options import Options

if TYPE_CHECKING:
    from holdfast.integrations.process import WatchedProcess


class Script:
    """A script or a module, run as the main program of this process.

    Nothing that the script raises is caught for good: its exit code, its traceback and Ctrl-C are its own. Frames of
    ours are left out of the traceback that ends it.

    Args:
        name: path of the script as it was typed; with `module`, a dotted name.
        arguments: all that follows.
        module: whether it is run as `python -m` would.
    """

    def __init__(self, name: str, arguments: Sequence[str] = (), *, module: bool = False) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.module = module
        self.process: WatchedProcess | None = None
        """The watch in this process, once the script has imported PyTorch."""
        self.interrupted = False
        """Whether Ctrl-C ended it."""

    def check(self) -> None:
        """Look whether there is something to run, before anything is set up for it.

        Raises:
            InputError: there is no such file or module.
        """
        if self.module and not _findable(self.name):
            raise input_error("a module to run", f"-m {self.name}, which is not found", "type: holdfast run train.py")
        if not self.module and not os.path.isfile(self.name):
            what = "is not a file" if os.path.exists(self.name) else "does not exist"
            fix = "type: holdfast run train.py (a module of a package: holdfast run -m package.module)"
            raise input_error("a Python script to run", f"'{self.name}', which {what}", fix)

    def watch(self, options: Options) -> None:
        """Install the watch as soon as PyTorch is there.

        Args:
            options: of the watch.
        """

        def install() -> None:
            from holdfast.integrations.process import WatchedProcess

            self.process = WatchedProcess(options)
            self.process.install()

        if "torch" in sys.modules:
            install()
        else:
            sys.meta_path.insert(0, _Awaited("torch", install))

    def run(self) -> None:
        """Run it; comes back only when it ends by itself."""
        # Held, so that what was the main program is not taken down while its functions still run.
        before = sys.modules["__main__"]
        main = ModuleType("__main__")
        sys.modules["__main__"] = main
        sys.argv = [self.name, *self.arguments]
        first = os.getcwd() if self.module else os.path.dirname(os.path.realpath(self.name))
        if not sys.flags.safe_path:
            sys.path[0] = first
        try:
            if self.module:
                _run_module(self.name)
            else:
                _run_file(self.name, main)
        except BaseException as error:
            self.interrupted = isinstance(error, KeyboardInterrupt)
            # Not before: a script may look whether somebody put a hook there.
            sys.excepthook = _without_ours(sys.excepthook)
            raise
        finally:
            del before


def _findable(name: str) -> bool:
    """Whether a dotted name leads to a module; nothing of it is imported."""
    places: list[str] | None = [os.getcwd(), *sys.path]
    whole = ""
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        specs = (
            finder.find_spec(whole, places if finder is PathFinder or "." in whole else None)
            for finder in sys.meta_path
        )
        spec = next((each for each in specs if each is not None), None)
        if spec is None:
            return False
        places = list(spec.submodule_search_locations or ())
    return True


def input_error(expected: str, got: str, fix: str) -> Exception:
    """An `InputError`, without importing it (and PyTorch with it) where nothing is wrong.

    Args:
        expected: what is needed.
        got: what came.
        fix: the line to type.
    """
    from holdfast.core.errors import InputError

    return InputError(expected, got, fix)


def _run_file(name: str, main: ModuleType) -> None:
    # Not by runpy: it puts the old main program back afterwards, and what runs at exit cannot pickle its classes then.
    path = os.path.abspath(name)
    names = {"__file__": path, "__cached__": None, "__builtins__": sys.modules["builtins"]}
    main.__dict__.update(names, __loader__=SourceFileLoader("__main__", path))
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    with open(path, "rb") as file:
        source = file.read()
    _execute(source, path, main.__dict__)


def _execute(source: bytes, path: str, namespace: dict[str, Any]) -> None:
    exec(compile(source, path, "exec", dont_inherit=True), namespace)


def _run_module(name: str) -> None:
    # What `python -m` itself calls: it fills the module that is the main program, and leaves it there.
    sys.argv[0] = "-m"
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def end_as_interrupted() -> None:
    """Let the interpreter end by SIGINT, as it does after Ctrl-C: call last, at exit.

    It remembers an interrupt until it next compiles a string, which the import of a dataclass does.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")


class _Awaited:
    """A finder that finds nothing, but calls a function once a module has been imported.

    Args:
        name: of the module.
        then: is called once.
    """

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Give the module's true specification, with a loader that tells when it is done."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            self._then()

        loader.exec_module = exec_module
        return spec


# Tracebacks


_PACKAGE = Path(__file__).parents[1]
_OURS = frozenset(
    str(_PACKAGE / name) for name in ("integrations/script.py", "integrations/process.py", "monitor/loss_tap.py")
)
_ENTRANCES = (_execute.__code__, _run_module.__code__)


def _without_ours(
    hook: Callable[[type[BaseException], BaseException, TracebackType | None], Any],
) -> Callable[[type[BaseException], BaseException, TracebackType | None], Any]:
    """A hook that sees exceptions as plain Python would have raised them."""

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        for each in _linked(error):
            each.__traceback__ = stripped(each.__traceback__)
        hook(kind, error, error.__traceback__)

    return shown


def stripped(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that led to the script, and without those of ours within it.

    Args:
        trace: of an exception that came out of a script.
    """
    entries: list[TracebackType] = []
    while trace is not None:
        entries.append(trace)
        if trace.tb_frame.f_code in _ENTRANCES:
            entries.clear()
        trace = trace.tb_next
    kept: TracebackType | None = None
    for each in reversed(entries):
        if each.tb_frame.f_code.co_filename not in _OURS:
            kept = TracebackType(kept, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return kept


def _linked(error: BaseException) -> Iterator[BaseException]:
    """An exception, its causes and contexts, and those of a group, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        yield each
