"""Versions are said in one place: constraints.txt; pre-commit, which cannot read it, says the same."""

from __future__ import annotations

import itertools
import re

import pytest
import yaml
from conftest import ROOT

TOOLS = {  # by the repository of their hooks
    "ruff-pre-commit": "ruff",
    "mirrors-mypy": "mypy",
    "codespell": "codespell",
    "rumdl-pre-commit": "rumdl",
    "mirrors-clang-format": "clang-format",
}


def constraints() -> dict[str, str]:
    """Version by package."""
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    return dict(re.match(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if line and line[0] != "#")  # type: ignore[union-attr]


def test_hooks_have_the_versions_of_the_constraints() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    versions = {one["repo"].rsplit("/", 1)[-1]: one["rev"].removeprefix("v") for one in repositories}
    pinned = constraints()
    assert {name: versions.get(name) for name in TOOLS} == {name: pinned[tool] for name, tool in TOOLS.items()}


def test_what_is_installed_has_a_version() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {re.split(r"[\[<>=]", one)[0].lower() for one in wanted} - {"sparsereco"}
    assert len(names) > 30
    assert names - set(constraints()) == set()
