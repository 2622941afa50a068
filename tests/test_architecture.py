"""The package's shape, read from its source: imports point down, options live in one place, docstrings are whole."""

from __future__ import annotations

import ast
import inspect
import itertools
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import fastloss

PACKAGE = pathlib.Path(fastloss.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
KERNELS_MAY_IMPORT = {"numba", "llvmlite", "numpy", *sys.stdlib_module_names}

FLOORS = (
    {"fastloss.nn"},
    {"fastloss", "fastloss.__main__"},
    {"fastloss._warmup"},
    {"fastloss.functional"},
    {"fastloss._engine"},
    {"fastloss._checks", "fastloss._layout", "fastloss._reduction", "fastloss._threads"},
    {"fastloss._kernels"},
)
"""From the top. A module imports from lower floors, and from its own where that makes no circle."""

SECTIONS = ["Parameters", "Returns", "Raises", "Notes", "References", "Examples"]


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    """Return the floor of the module or of the package it is in, the most specific first."""
    while module:
        for number, names in enumerate(FLOORS):
            if module in names:
                return number
        module = module.rpartition(".")[0]
    raise AssertionError("a module outside of fastloss")


def imports(path: pathlib.Path, module_level: bool = False) -> Iterator[str]:
    """Yield the names of the modules that a file imports, those of `from package import module` in full."""
    tree = ast.parse(path.read_text())
    for node in tree.body if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            assert node.module is not None
            for alias in node.names:
                inside = PACKAGE.parent / pathlib.Path(*node.module.split("."))
                is_module = (inside / f"{alias.name}.py").exists() or (inside / alias.name / "__init__.py").exists()
                yield f"{node.module}.{alias.name}" if is_module else node.module


modules = pytest.mark.parametrize("path", MODULES, ids=name_of)


@modules
def test_imports_point_down(path: pathlib.Path) -> None:
    own = name_of(path)
    for imported in imports(path):
        if imported.split(".")[0] == "fastloss":
            assert floor_of(imported) >= floor_of(own), f"{own} imports {imported}"


def test_imports_make_no_circle() -> None:
    graph = {name_of(path): {name for name in imports(path) if name != "fastloss"} for path in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        if module not in done:
            for imported in graph.get(module, ()):
                visit(imported, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@modules
def test_kernels_stand_on_numba_and_numpy_alone(path: pathlib.Path) -> None:
    if name_of(path).startswith("fastloss._kernels"):
        for imported in imports(path):
            root = imported.split(".")[0]
            assert root in KERNELS_MAY_IMPORT or imported.startswith("fastloss._kernels"), imported


@modules
def test_torch_is_imported_in_nn_alone(path: pathlib.Path) -> None:
    if not name_of(path).startswith("fastloss.nn"):
        assert not [name for name in imports(path, module_level=True) if name.split(".")[0] == "torch"]


@modules
def test_numba_is_imported_at_module_level_in_the_kernels_alone(path: pathlib.Path) -> None:
    if not name_of(path).startswith("fastloss._kernels"):
        roots = {name.split(".")[0] for name in imports(path, module_level=True)}
        assert not roots & {"numba", "llvmlite"}


@modules
def test_numba_options_are_in_one_place(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert "fastmath" not in used | keywords | strings, "nan and the infinities must survive"
    if name_of(path) != "fastloss._kernels._jit":
        assert not used & {"njit", "jit", "vectorize", "guvectorize", "overload"}
        assert not keywords & {"nogil", "cache", "error_model", "parallel", "inline", "forceinline", "boundscheck"}


def test_public_names_are_those_of_all() -> None:
    public = {name for name, value in vars(fastloss).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert public == set(fastloss.__all__)
    assert fastloss.__all__ == sorted(fastloss.__all__)


@pytest.mark.parametrize("name", fastloss.__all__)
def test_docstrings_are_whole(name: str) -> None:
    function = getattr(fastloss, name)
    text = inspect.getdoc(function)
    assert text is not None
    lines = text.splitlines()
    assert lines[0].startswith("Return ")
    assert lines[0].endswith(".")
    found = [line for line, under in itertools.pairwise(lines) if re.fullmatch(r"-+", under)]
    assert found == SECTIONS
    assert all(len(a) == len(b) for a, b in itertools.pairwise(lines) if re.fullmatch(r"-+", b))
    documented = text.split("\nParameters\n")[1].split("\nReturns\n")[0]
    assert re.findall(r"^(\w+) : ", documented, re.MULTILINE) == list(inspect.signature(function).parameters)
    assert ">>> " in text.split("\nExamples\n")[1]


@modules
def test_every_module_and_public_definition_says_what_it_is(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_import_loads_neither_numba_nor_torch() -> None:
    """Numba takes half a second and torch two; whoever only imports fastloss waits for neither."""
    code = "import sys, fastloss; print(sorted({'numba', 'llvmlite', 'torch'} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=60)
    assert run.stdout.strip() == "[]"
