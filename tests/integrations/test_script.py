from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.core.errors import InputError
from holdfast.integrations.options import Options
from holdfast.integrations.script import Script, _Awaited


def python(folder: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


RUN = "import sys; from holdfast.integrations.script import Script; Script(sys.argv[1], sys.argv[2:]).run()"


def test_a_script_finds_the_world_as_under_python(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sibling.py").write_text("value = 7")
    script = tmp_path / "folder" / "script.py"
    script.write_text(
        "# -*- coding: latin-1 -*-\n"
        "import pickle, sys, sibling, inspect\n"
        "class Mine: pass\n"
        "assert __name__ == '__main__' and type(pickle.loads(pickle.dumps(Mine()))) is Mine\n"
        "assert inspect.getsource(Mine) == 'class Mine: pass\\n'\n"
        "print(sys.argv, sys.path[0], __file__, __spec__, __package__, __cached__, __doc__, sibling.value, 'é')\n"
        "print(sorted(globals()), type(__loader__).__name__, type(__builtins__).__name__, __annotations__)\n"
        "print(sys.excepthook is sys.__excepthook__, sys.exc_info(), 'torch' in sys.modules)\n",
        encoding="latin-1",
    )
    (tmp_path / "link.py").symlink_to(script)
    for name in ("folder/script.py", "link.py"):
        plain = subprocess.run([sys.executable, name, "--out", "x"], cwd=tmp_path, capture_output=True, text=True)
        ours = python(tmp_path, RUN, name, "--out", "x")
        assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, 0)


@pytest.mark.parametrize(
    "source",
    [
        "def f(:\n",
        "from __future__ import annotations\nx: undefined = 1\n1/0\n",
        "try:\n    1/0\nexcept ZeroDivisionError:\n    raise ExceptionGroup('both', [ValueError(1), KeyError(2)])\n",
        "import sys\nsys.excepthook = lambda *error: print('own', error[2].tb_frame.f_code.co_name)\nopen('gone')\n",
        "import no_such_module\n",
        "raise SystemExit\n",
    ],
)
def test_how_it_ends_is_its_own(tmp_path: Path, source: str) -> None:
    (tmp_path / "script.py").write_text(source)
    plain = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    ours = python(tmp_path, RUN, "script.py")
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, plain.returncode)


def test_an_environment_that_asks_for_a_safe_path_gets_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys; print(sys.path[0])")
    said = [
        subprocess.run(
            [sys.executable, "-P", *words, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for words in ([], ["-c", RUN])
    ]
    assert said[0] == said[1]


def test_a_module_awaited_is_told_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited_module.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[object] = []
    waiting = _Awaited("awaited_module", lambda: seen.append(sys.modules["awaited_module"].value))
    sys.meta_path.insert(0, waiting)
    try:
        assert importlib.util.find_spec("no_such_module") is None
        module = importlib.import_module("awaited_module")
    finally:
        sys.modules.pop("awaited_module", None)
        assert waiting not in sys.meta_path
    assert seen == [1]
    assert "exec_module" not in vars(module.__loader__)
    importlib.import_module("awaited_module")
    assert seen == [1]
    sys.modules.pop("awaited_module", None)


@pytest.mark.parametrize(("name", "module"), [("gone.py", False), (".", False), ("gone", True), ("json.gone", True)])
def test_what_cannot_be_run_is_told(name: str, module: bool) -> None:
    with pytest.raises(InputError, match="type: holdfast run"):
        Script(name, module=module).check()


def test_what_can_be_run_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package_of_mine" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("raise SystemError")
    (package / "leaf.py").write_text("")
    monkeypatch.chdir(tmp_path)
    Script("a_package_of_mine.inner.leaf", module=True).check()
    Script("json.tool", module=True).check()


def test_the_watch_is_installed_at_once_where_torch_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[object] = []
    monkeypatch.setattr(
        "holdfast.integrations.process.WatchedProcess.install", lambda process: installed.append(process)
    )
    script = Script("train.py")
    script.watch(Options(tmp_path))
    assert installed == [script.process]
