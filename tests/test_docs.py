"""What README and documentation say is true: their code runs, their commands are there, their names exist."""

import importlib.util
import inspect
import math
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import jax_bptt as jb

ROOT = Path(__file__).parent.parent
MADE = {"_build", "notebooks"}
DOCS = [p for p in sorted((ROOT / "docs").rglob("*.md")) if not MADE & {*p.relative_to(ROOT).parts}]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + DOCS


def read(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return str(path.relative_to(ROOT))


def code(path):
    blocks = re.findall(r"^```(?:python|\{code-cell\})\n(.*?)^```", read(path), re.DOTALL | re.MULTILINE)
    return "\n".join(re.sub(r"\A(:.*\n)+", "", block) for block in blocks)


@pytest.mark.parametrize("path", [path for path in PAGES if code(path)], ids=name_of)
def test_code_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys, as_users_have_it):
    monkeypatch.chdir(tmp_path)
    exec(compile(code(path), str(path), "exec"), {"__name__": "page"})
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == ({"credit_matrix.png", "checkpoints"} if path.name == "README.md" else set())
    if path.name == "README.md":
        (loss,) = re.findall(r"loss (\d\.\d+); that of saying nothing is 0\.5", capsys.readouterr().out)
        assert float(loss) < 0.1


def shell_lines():
    for path in PAGES:
        indented = re.findall(r"^    ((?:pip|python|bash|git|jupyter) .*)$", read(path), re.MULTILINE)
        fenced = "\n".join(re.findall(r"^```shell\n(.*?)^```", read(path), re.DOTALL | re.MULTILINE)).splitlines()
        inline = re.findall(r"`((?:pip install|python -m|bash) [^`]+)`", read(path))
        for line in indented + fenced + inline:
            yield from filter(None, map(str.strip, line.split("&&")))


@pytest.mark.parametrize("line", sorted({*shell_lines()}))
def test_shell_lines_are_of_what_there_is(line, capsys):
    """Parsed by the commands that they name, and not run: they take minutes to hours.

    Programs of the package, and of the tests but for `tests.accelerators`, are run small by tests of their own.
    """
    words = shlex.split(line, comments=True)
    if words[:2] == ["pip", "install"]:
        (extras,) = re.findall(r"\[(.*)\]|$", words[-1])[:1]
        there = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        assert {*filter(None, extras.split(","))} <= there.keys()
        assert words[2:-1] in ([], ["-e"])
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("tests", "jax_bptt"):
        _takes(words[2], words[3:])
        told = capsys.readouterr().out
        assert all(word in told for word in words if word.startswith("--"))
    elif words[:2] == ["python", "-m"]:
        assert words[2] == "sphinx"  # which .ci/docs runs
        assert read(ROOT / ".ci" / "docs").rstrip().endswith('python -m sphinx -W --keep-going -q -b html docs "$1"')
    else:
        assert {*words} & {"pytest", "ruff", "basedpyright", "git", "jupyter"}


def _takes(module, arguments):
    """A command with these arguments, as far as it can be told without running it."""
    if importlib.util.find_spec(module).submodule_search_locations is not None:
        module = f"{module}.__main__"
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(module).main([*arguments, "--help"])
    assert exit_.value.code == 0


def test_the_two_commands():
    assert "    pip install -e '.[all]' && python -m jax_bptt\n    pip install -e '.[test]' && pytest\n" in read(
        PAGES[0]
    )
    assert "pip install --quiet -e '.[test]' && pytest" in read(ROOT / ".ci" / "run")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_names_exist(path):
    for name in {*re.findall(r"\bjb\.([a-zA-Z_][\w.]*\w)", read(path))}:
        value = jb
        for part in name.split("."):
            value = getattr(value, part)


def test_all_public_names_are_in_the_api():
    told = read(ROOT / "docs" / "api.md")
    for name in [*jb.__all__, "checkpoint", "plots"]:
        kind = "module:: jax_bptt." if inspect.ismodule(getattr(jb, name)) else r"(?:function|class):: (?:jax_bptt\.)?"
        assert re.search(rf"auto{kind}{name}$", told, re.MULTILINE), name


def test_all_public_names_are_in_the_readme():
    named = {name.split(".")[0] for name in re.findall(r"\bjb\.([\w.]+)", read(PAGES[0]))}
    assert named >= {*jb.__all__, "checkpoint", "plots"}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read(path)):
        assert (path.parent / target).exists(), target


def test_all_pages_are_in_the_index():
    index = read(ROOT / "docs" / "index.md")
    for path in DOCS:
        assert path.name == "index.md" or re.search(
            rf"^{path.relative_to(ROOT / 'docs').with_suffix('')}$", index, re.M
        )


def test_the_table_of_the_readme_is_that_of_the_benchmarks():
    """Geometric means, least and most of the columns of the long table, as far as their digits tell."""
    rows = re.findall(r"^\| (elman|gru|lstm) \| \d.*$", read(ROOT / "docs" / "benchmarks.md"), re.MULTILINE)
    assert len(rows) == 18
    for cell in ("elman", "GRU", "LSTM"):
        (short,) = re.findall(rf"^\| {cell} \| (\d.*) \|$", read(PAGES[0]), re.MULTILINE)
        long = re.findall(rf"^\| {cell.lower()} \| \d.*$", read(ROOT / "docs" / "benchmarks.md"), re.MULTILINE)
        columns = zip(*([float(x.strip("× ")) for x in row.split("|")[5:10]] for row in long), strict=True)
        for told, column in zip(short.split(" | "), columns, strict=True):
            mean, least, most = map(float, re.findall(r"\d+\.\d+", told))
            assert (least, most) == (min(column), max(column))
            assert mean == pytest.approx(math.exp(sum(map(math.log, column)) / len(column)), abs=0.015)
