"""The house that the package's docstring describes: small rooms, an engine that stands on its own, and one door to JAX.

What is counted is counted as a reader would: lines of a function without its docstring, files of a folder.
"""

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jax_bptt as jb

PACKAGE = Path(jb.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """What a file imports, by the full names of modules: of `from a import b`, a.b where that is a module, else a."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)


def functions() -> Iterator[tuple[Path, ast.FunctionDef, int]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
                yield path, node, (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_no_folder_has_more_than_16_modules():
    for folder in {path.parent for path in FILES}:
        assert len(list(folder.glob("*.py"))) <= 16, folder


def test_functions_are_short():
    for path, node, lines in functions():
        assert lines <= 60, (path, node.name)
    assert statistics.median(lines for *_, lines in functions()) <= 12


def test_no_function_has_the_name_of_a_module_beside_it():
    for path, node, _ in functions():
        if node in TREES[path].body:
            beside = {entry.stem for entry in path.parent.iterdir() if entry.suffix == ".py" or entry.is_dir()}
            assert node.name not in beside, path


def test_no_circle():
    uses = {name: {found for found in imports(path) if found in MODULES} for name, path in MODULES.items()}
    while uses:
        free = {name for name, used in uses.items() if not used & (uses.keys() - {name})}
        assert free, f"a circle among {sorted(uses)}"
        uses = {name: used for name, used in uses.items() if name not in free}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("jax_bptt.engine")])
def test_the_engine_stands_on_its_own(name):
    for found in imports(MODULES[name]):
        top = found.split(".")[0]
        ours = found.startswith("jax_bptt.engine.") or found == "jax_bptt.model"
        assert ours or top in {"jax", "numpy"} or top in sys.stdlib_module_names, found


def test_one_door_to_the_jaxprs():
    doors = {name for name, path in MODULES.items() if any(found.startswith("jax.extend") for found in imports(path))}
    assert doors == {"jax_bptt.engine.step.equations"}
    attributes = {
        (name, node.attr)
        for name, path in MODULES.items()
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute) and node.attr in ("jaxpr", "consts", "eqns", "constvars")
    }
    assert {name for name, _ in attributes} <= {*doors, "jax_bptt.engine.step.graph"}


def test_the_map_names_every_room():
    rooms = {entry.stem for entry in PACKAGE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").exists()}
    wanted = {"": rooms - {"__init__", "__main__", "batching", "checkpoint"}}
    wanted |= {
        folder: {entry.stem for entry in (PACKAGE / folder).glob("[a-z]*")} for folder in ("engine", "engine/step")
    }
    for folder, names in wanted.items():
        docstring = ast.get_docstring(TREES[PACKAGE / folder / "__init__.py"]) or ""
        named = {
            name for line in re.findall(r"^    ([\w/, ]+?)  ", docstring, re.M) for name in re.findall(r"\w+", line)
        }
        assert names <= named, names - named


def test_names_that_do_not_exist_are_errors():
    for name, tree in ((name_of(path), tree) for path, tree in TREES.items()):
        assert "__getattr__" not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
    assert not hasattr(jb, "nonexistent")
