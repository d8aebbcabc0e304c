"""What pyproject.toml promises: the requirements files agree with it, and what is built carries its types."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
FILES = sorted(path.name for path in FOLDER.iterdir())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BASE: list[str] = PYPROJECT["project"]["dependencies"]
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
WANTED = {
    "base.txt": BASE,
    "build.txt": PYPROJECT["build-system"]["requires"],
    "dev.txt": [*BASE, *(line for extra in EXTRAS.values() for line in extra)],
    "image.txt": [line for line in BASE if Requirement(line).name not in ("tinygrad", "ziglang")],
} | {f"{name}.txt": [*BASE, *extra] for name, extra in EXTRAS.items() if name != "dev"}

PLACES = [
    {"python_version": version, "python_full_version": f"{version}.0", "sys_platform": platform}
    for version in ("3.11", "3.12", "3.13", "3.14")
    for platform in ("linux", "darwin", "win32")
]


def pins(name: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Each requirement of a file, with its hashes."""
    for line in (FOLDER / name).read_text().replace("\\\n", "").splitlines():
        requirement, *hashes = line.split("--hash=")
        if requirement and not requirement.lstrip().startswith("#"):
            yield Requirement(requirement), hashes


def versions(name: str, place: dict[str, str]) -> dict[str, str]:
    """What is installed from a file, on one Python and system: one version of each package."""
    found = [pin for pin, _ in pins(name) if pin.marker is None or pin.marker.evaluate(place)]
    result = {pin.name: str(pin.specifier).removeprefix("==") for pin in found}
    assert len(result) == len(found)
    return result


def test_there_is_a_file_for_the_base_for_each_extra_for_the_build_and_for_the_image() -> None:
    assert sorted(WANTED) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place['python_version']}-{place['sys_platform']}")
def test_each_requirement_of_the_project_is_there_at_a_version_that_it_allows(name: str, place: dict[str, str]) -> None:
    installed = versions(name, place)
    for wanted in map(Requirement, WANTED[name]):
        assert wanted.specifier.contains(installed[canonicalize_name(wanted.name)], prereleases=True), wanted


@pytest.mark.parametrize("name", FILES)
def test_each_requirement_is_one_version_with_its_hashes(name: str) -> None:
    for pin, hashes in pins(name):
        assert [each.operator for each in pin.specifier] == ["=="], pin
        assert hashes, pin
        assert all(each.startswith("sha256:") for each in hashes), pin


@pytest.mark.parametrize("name", sorted(set(FILES) - {"build.txt"}))
def test_what_is_tested_is_what_runs_elsewhere(name: str) -> None:
    for place in PLACES:
        assert versions(name, place).items() <= versions("dev.txt", place).items()


def test_the_image_carries_what_runs_and_no_compiler() -> None:
    base, image = (versions(name, PLACES[0]) for name in ("base.txt", "image.txt"))
    assert set(base) - set(image) == {"tinygrad", "ziglang"}
    assert "--require-hashes" in (dockerfile := (ROOT / "deploy/Dockerfile").read_text())
    assert re.findall(r"--requirement (\S+)", dockerfile) == ["requirements/build.txt", "requirements/image.txt"]


@pytest.mark.parametrize("name", FILES)
def test_no_address_and_no_place_of_a_machine_is_in_a_requirements_file(name: str) -> None:
    text = (FOLDER / name).read_text()
    for word in ("://", "index-url", "find-links", "trusted-host", str(Path.home()), str(ROOT), " /", "=/"):
        assert word not in text, word


@pytest.mark.slow
def test_what_is_built_carries_its_types(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("pipeline", "producers", "consumers", "benchmarks"):
        shutil.copytree(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = source.glob("*.whl")
    names = ZipFile(wheel).namelist()
    assert {"pipeline/py.typed", "producers/py.typed", "consumers/py.typed"} <= set(names)


def test_what_is_checked_before_a_commit_is_what_make_lint_checks() -> None:
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert [(hook["entry"], hook["pass_filenames"], hook["always_run"]) for hook in local["hooks"]] == [
        ("make lint", False, True)
    ]
