"""The project itself: what its files promise about dependencies, wheels, old Pythons and commands."""

from __future__ import annotations

import ast
import glob
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from logsvc.settings import SETTINGS

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements-build.lock", "requirements.lock", "requirements-dev.lock")


def _pyproject(path: str = "pyproject.toml") -> dict:
    return tomllib.loads((ROOT / path).read_text(encoding="utf-8"))


def _name(requirement: str) -> str:
    """Return the normalised name of a requirement such as ``psycopg[binary]>=3``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def _run(*command: str | Path, cwd: Path, **env: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ------------------------------------------------------------------------------------------------------ dependencies


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_address_and_no_folder(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.findall(r"https?:|file:|find-links|index-url|(?<![\w.])/\w+|\s@\s|-e ", text)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_hash(lock: str) -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text(encoding="utf-8"))
    assert len(blocks) > 3
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_locks_hold_what_the_project_asks_for() -> None:
    project = _pyproject()
    groups = project["dependency-groups"]
    runtime = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["postgres"]]
    build = groups["build"]
    dev = [item for group in groups.values() for item in group if isinstance(item, str)]
    locked = {
        lock: set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE))
        for lock in LOCKS
    }
    assert {_name(item) for item in build} <= locked["requirements-build.lock"]
    assert {_name(item) for item in runtime} - {"logsvc-shippers"} <= locked["requirements.lock"]
    assert {_name(item) for item in runtime + dev} - {"logsvc-shippers"} <= locked["requirements-dev.lock"]


def _imports(package: str) -> Iterator[tuple[Path, str, bool]]:
    """Yield (file, top-level module, at import time) for each absolute import in the package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lazy = {
            id(inner)
            for outer in ast.walk(tree)
            if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Try))
            or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                yield path.relative_to(ROOT), name.split(".")[0], id(node) not in lazy


OWN = {"logsvc", "detectors", "logsvc_demo", "shippers", "tests"}
# Taken by another package where it is installed: uvicorn, and SQLAlchemy for postgresql:// addresses.
TAKEN_BY_OTHERS = {"uvloop", "psycopg", "logsvc-shippers"}


def _declared() -> set[str]:
    project = _pyproject()["project"]
    extras = project["optional-dependencies"].values()
    return {_name(item) for item in [*project["dependencies"], *(item for extra in extras for item in extra)]}


def _imported(*packages: str) -> dict[str, set[str]]:
    """Return, for each foreign distribution that the packages import, the files that do."""
    owners = packages_distributions()
    files: dict[str, set[str]] = {}
    for package in packages:
        for path, module, _ in _imports(package):
            if module not in sys.stdlib_module_names and module not in OWN:
                for owner in owners.get(module, [module]):
                    files.setdefault(_name(owner), set()).add(str(path))
    return files


def test_the_service_imports_what_it_declares_and_declares_what_it_imports() -> None:
    imported = _imported("logsvc", "detectors", "logsvc_demo")
    assert {name: files for name, files in imported.items() if name not in _declared()} == {}
    assert _declared() - set(imported) == TAKEN_BY_OTHERS


def test_tests_import_nothing_that_is_not_installed_for_them() -> None:
    dev = {_name(item) for item in _pyproject()["dependency-groups"]["dev"] if isinstance(item, str)}
    offered = _declared() | dev
    assert {name: files for name, files in _imported("tests").items() if name not in offered} == {}


def test_shippers_import_nothing_but_the_standard_library_at_import_time() -> None:
    known = sys.stdlib_module_names | {"shippers"}
    assert {
        f"{path}: {module}" for path, module, eager in _imports("shippers") if eager and module not in known
    } == set()
    assert _pyproject("shippers/pyproject.toml")["project"]["dependencies"] == []


def test_optional_imports_of_shippers_have_an_extra() -> None:
    extras = _pyproject("shippers/pyproject.toml")["project"]["optional-dependencies"]
    offered = {_name(item) for extra in extras.values() for item in extra}
    known = sys.stdlib_module_names | {"shippers", "__main__"}
    used = {_name(module) for _, module, _ in _imports("shippers") if module not in known}
    assert used <= offered, f"offered: {sorted(offered)}"


# ------------------------------------------------------------------------------------------------------- old Pythons


def _oldest_python() -> str:
    """Return the oldest interpreter of version 3.9 or later on this machine; at worst the one running this."""
    found: dict[tuple[int, int], str] = {(sys.version_info.major, sys.version_info.minor): sys.executable}
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/local/bin", "/opt/python/bin"]
    homes = [os.path.expanduser("~/.pyenv/versions/3.*/bin"), os.path.expanduser("~/.local/share/uv/python/*/bin")]
    for folder in [*folders, *(match for home in homes for match in glob.glob(home))]:
        for minor in range(9, sys.version_info.minor):
            path = os.path.join(folder, f"python3.{minor}")
            # A shim exists also for a version that is not active, so each is asked.
            if (3, minor) not in found and os.access(path, os.X_OK):
                asked = subprocess.run([path, "-c", "pass"], capture_output=True, timeout=30, check=False)
                if asked.returncode == 0:
                    found[3, minor] = path
    return found[min(found)]


def test_shippers_compile_and_import_under_the_oldest_python_here(tmp_path: Path) -> None:
    python = _oldest_python()
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "shippers").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    script = f"""
import compileall, importlib, sys
sys.path.insert(0, {str(ROOT)!r})
sys.dont_write_bytecode = True
for name in {modules!r}:
    importlib.import_module(name)
"""
    compile_all = (
        "import sys; from pathlib import Path\n"
        f"for p in Path({str(ROOT / 'shippers')!r}).rglob('*.py'): compile(p.read_bytes(), str(p), 'exec')"
    )
    _run(python, "-I", "-c", compile_all, cwd=tmp_path)
    # -S: without site-packages, so an import that is not in the standard library fails here.
    _run(python, "-I", "-S", "-W", "error", "-c", script, cwd=tmp_path)


# ------------------------------------------------------------------------------------------------------------- wheels


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dist")
    for project in (ROOT, ROOT / "shippers"):
        _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=project)
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


def _files(*packages: str) -> set[str]:
    listed = _run("git", "ls-files", "--", *packages, cwd=ROOT).split("\n")
    return {line for line in listed if line}


def test_wheel_of_the_service_holds_both_packages_whole(wheels: dict[str, Path]) -> None:
    inside = set(zipfile.ZipFile(wheels["logsvc"]).namelist())
    assert _files("logsvc", "detectors", "logsvc_demo") <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info/" not in name} == {
        "logsvc",
        "detectors",
        "logsvc_demo",
    }


def test_wheel_of_the_shippers_holds_only_the_package(wheels: dict[str, Path]) -> None:
    inside = {name for name in zipfile.ZipFile(wheels["logsvc_shippers"]).namelist() if ".dist-info/" not in name}
    assert _files("shippers") - {"shippers/pyproject.toml", "shippers/README.md", "shippers/LICENSE"} <= inside
    assert {name.split("/")[0] for name in inside} == {"shippers"}
    assert "shippers/pyproject.toml" not in inside


def test_wheels_import_when_installed_elsewhere(wheels: dict[str, Path], tmp_path: Path) -> None:
    for wheel in wheels.values():
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import logsvc.__main__, detectors, shippers; print(logsvc.__file__, detectors.__file__, shippers.__file__)"
    printed = _run(sys.executable, "-P", "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert all(path.startswith(str(tmp_path)) for path in printed.split())


def test_deployment_files_name_only_settings_that_exist() -> None:
    known = {row.name for row in SETTINGS} | {"LOGSVC_URL", "LOGSVC_API_KEY"}
    named = {
        (path.name, name)
        for path in (ROOT / "deploy").rglob("*")
        if path.is_file()
        for name in re.findall(r"\bLOGSVC_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert {(file, name) for file, name in named if name not in known} == set()


# ----------------------------------------------------------------------------------------------------------- commands


def test_make_alone_lists_every_target() -> None:
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared
    listed = re.findall(r"^  make (\w+) +\S.*\.$", _run("make", "--no-print-directory", cwd=ROOT), re.MULTILINE)
    assert listed == declared.group(1).split()


def test_skip_is_a_failure_only_in_ci(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.skip(reason='no server')\ndef test_marked(): ...\n"
        "def test_called(): pytest.skip('no server')\n"
        "@pytest.mark.xfail(reason='known')\ndef test_expected(): raise ValueError\n",
        encoding="utf-8",
    )
    (tmp_path / "test_module.py").write_text(
        "import pytest\npytest.skip('no server', allow_module_level=True)\n", encoding="utf-8"
    )
    outcomes = {}
    for ci in ("", "true"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--continue-on-collection-errors", "--rootdir", str(tmp_path), str(tmp_path)],
            env=os.environ | {"CI": ci}, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        outcomes[ci] = (done.returncode, done.stdout)
    assert outcomes[""][0] == 0, outcomes[""][1]
    assert "3 skipped, 1 xfailed" in outcomes[""][1]
    assert outcomes["true"][0] != 0
    assert outcomes["true"][1].count("a skip is a failure in CI: ") >= 3, outcomes["true"][1]


# ---------------------------------------------------------------------------------------------------------- documents


def _prose() -> Iterator[tuple[Path, str]]:
    """Yield (file, text) of every document and of every docstring, its examples left out."""
    for line in _run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        path = ROOT / line
        if path.suffix == ".md":
            yield path, path.read_text(encoding="utf-8")
        elif path.suffix == ".py" and line.split("/")[0] in OWN:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    for text in (ast.get_docstring(node) or "").split("\n\n"):
                        if not text.lstrip().startswith(">>>"):
                            yield path, text


def test_every_file_that_a_document_or_docstring_names_exists() -> None:
    files = [path for path, _ in _prose()] + [ROOT / name for name in _files("*.py", "*.md")]
    known = {path.as_posix() for path in files if path.exists()}
    missing = set()
    for path, text in _prose():
        for name in re.findall(r"(?<![\w./*<-])[\w./-]*\w\.(?:py|md)\b(?!\w)", text):
            if not any(file.endswith("/" + name.lstrip("./")) for file in known):
                missing.add((str(path.relative_to(ROOT)), name))
    assert missing == set()
