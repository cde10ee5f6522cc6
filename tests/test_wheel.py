"""The wheel holds every package and the demo set, and its packages can be imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("stylevar", "data", "reward", "rollout", "learner", "launch")
IMPORT_ALL = """
import importlib, pkgutil, sys
from pathlib import Path

site, *tops = sys.argv[1:]
sys.path.insert(0, site)
for top in tops:
    package = importlib.import_module(top)
    found = pkgutil.walk_packages(package.__path__, top + ".")
    for name in [top, *(info.name for info in found if info.ispkg)]:
        file = importlib.import_module(name).__file__
        assert Path(file).is_relative_to(site), file
        print(name)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the wheel's content."""
    source = tmp_path_factory.mktemp("source")  # a build leaves folders in it
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels, unpacked = (tmp_path_factory.mktemp(name) for name in ("wheels", "site"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(wheels))
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("stylevar-*.whl")
    zipfile.ZipFile(wheel).extractall(unpacked)
    return unpacked


def files(folder: Path) -> set[str]:
    """All of our files in a folder, by their paths from there."""
    found = (file for name in PACKAGES for file in (folder / name).rglob("*") if file.is_file())
    return {str(file.relative_to(folder)) for file in found if "__pycache__" not in file.parts}


@pytest.mark.slow
def test_the_wheel_holds_all_of_our_files(site):
    assert files(site) == files(ROOT)


@pytest.mark.slow
def test_every_package_of_the_wheel_can_be_imported(site):
    command = [sys.executable, "-I", "-c", IMPORT_ALL, str(site), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = {
        str(file.parent.relative_to(ROOT)).replace("/", ".")
        for top in PACKAGES
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert set(done.stdout.split()) >= expected
