"""Files on servers, as far as it goes without one; tests/integration/test_xrootd.py has one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from conftest import Reco

from sparsereco import cli, remote
from sparsereco.io import expand

URL = "root://localhost:1//data/a.root"


@pytest.fixture
def without_client(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = {"XRootD", "fsspec_xrootd"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))


@pytest.mark.usefixtures("without_client")
@pytest.mark.parametrize("url", [URL, f"{URL}:hits", "root://localhost:1//data/*.root"])
def test_what_to_install_is_said(reco: Reco, capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert reco(url, "-o", "out.root") == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert said == f"error: {url.removesuffix(':hits')} needs the client of XRootD: pip install 'sparsereco[xrootd]'\n"
    assert not Path("out.root").exists()


def test_limits_of_the_user_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("XRootD", reason="needs a client: pip install 'sparsereco[xrootd]'")
    for name in remote.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XRD_CONNECTIONWINDOW", "7")
    with remote.connection(URL):
        assert os.environ["XRD_CONNECTIONWINDOW"] == "7"
        assert os.environ["XRD_REQUESTTIMEOUT"] == str(remote.LIMITS["XRD_REQUESTTIMEOUT"])


def test_other_urls_name_themselves() -> None:
    given = ["https://host/a.root?b=*", "https://host:80/a.root:hits", "root://host//a.root?x=1"]
    expected = [
        ("https://host/a.root?b=*", None),
        ("https://host:80/a.root", "hits"),
        ("root://host//a.root?x=1", None),
    ]
    assert list(expand(given)) == expected
