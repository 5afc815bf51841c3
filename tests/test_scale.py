"""Units on two local workers of Dask: nothing is lost or doubled, whatever happens to workers and units."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import uproot
from conftest import ROOT, WriteHits, some_hits
from scale_work import Job, attempts, pretend, write_numbers

from sparsereco import cli, scale
from sparsereco.errors import InputError, OutputError
from sparsereco.io import HITS, RECO, RootWriter, read
from sparsereco.parts import Input, Parts, Tally, Unit, divide
from sparsereco.scale import Outcome, Task, run_units, software, workers

pytest.importorskip("distributed", reason="dask is not installed: pip install 'sparsereco[scale]'")

SAMPLE = ROOT / "tests" / "data" / "demo.root"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with workers(2, None, ["sparsereco.io", "torch"]) as client:
        client.wait_for_workers(2)
        client.upload_file(str(Path(__file__).with_name("scale_work.py")))
        yield client


class Runs:
    """Runs units of four entries with a job, in a folder of their own."""

    def __init__(self, client: Any, folder: Path, n_units: int) -> None:
        self.client, self.folder = client, folder
        self.units = divide([Input("a.root", "hits", 4 * n_units, "u")], 0, None, 4)
        self.parts = Parts(folder / "out.root", {"units": n_units})
        self.parts.open(resume=False, force=True)
        (folder / "notes").mkdir()

    def __call__(self, time_limit: float = 60, **what: tuple[int, ...]) -> tuple[dict[int, Outcome], Job]:
        job = Job(str(self.folder / "notes"), **what)
        task = Task(write_numbers, job, self.parts.folder, self.parts.digest, self.folder, software(), time_limit)
        outcomes = list(run_units(self.client, task, self.units))
        assert len(outcomes) == len({outcome.unit.number for outcome in outcomes}) == len(self.units)
        return {outcome.unit.number: outcome for outcome in outcomes}, job

    def merged(self, units: list[Unit]) -> list[int]:
        with RootWriter(self.folder / "out.root", force=True) as writer:
            for unit in units:
                self.parts.merge(unit, [HITS], writer, Tally())
        return read(self.folder / "out.root", HITS)["event"].tolist()


@pytest.fixture
def runs(client: Any, tmp_path: Path) -> Callable[[int], Runs]:
    return lambda n_units: Runs(client, tmp_path, n_units)


def test_two_runs_at_a_time(client: Any) -> None:
    with workers(1, None) as other:  # a warning is an error here
        assert other.submit(max, [1, 2]).result() == client.submit(max, [1, 2]).result()


def test_workers_that_die_lose_and_double_nothing(runs: Callable[[int], Runs]) -> None:
    run = runs(20)
    outcomes, job = run(dies_once=(3, 11), fails_once=(5, 19))
    assert all(outcome.error is None and outcome.events == 4 for outcome in outcomes.values())
    assert run.merged(run.units) == list(range(80))
    assert [attempts(job, number) for number in (0, 5, 19)] == [1, 2, 2]
    assert all(attempts(job, number) >= 2 for number in (3, 11))


@pytest.fixture
def one_loss(client: Any) -> Iterator[None]:
    """A unit that takes one worker with it is given up, to wait for fewer workers."""

    def allow(failures: int, dask_scheduler: Any = None) -> None:
        dask_scheduler.allowed_failures = failures

    client.run_on_scheduler(allow, 0)
    yield
    client.run_on_scheduler(allow, 3)


def test_a_unit_that_hangs_is_tried_by_another_worker(runs: Callable[[int], Runs]) -> None:
    run = runs(6)
    outcomes, job = run(time_limit=1, hangs_once=(2,))
    assert all(outcome.error is None for outcome in outcomes.values())
    assert run.merged(run.units) == list(range(24))
    assert attempts(job, 2) == 2


@pytest.mark.usefixtures("one_loss")
def test_a_unit_that_always_hangs_is_given_up(runs: Callable[[int], Runs]) -> None:
    run = runs(4)
    outcomes, _ = run(time_limit=1, hangs=(1,))
    assert [outcome.error is None for _, outcome in sorted(outcomes.items())] == [True, False, True, True]
    assert re.fullmatch(
        r"a.root, entries 4 to 7 \(unit 1\): given up, it took longer than --unit-timeout 1 s, the last time in hang "
        r"\(scale_work.py, line \d+\)",
        str(outcomes[1].error),
    )


@pytest.mark.usefixtures("one_loss")
def test_a_unit_that_cannot_be_done_is_told_and_the_others_are_done(runs: Callable[[int], Runs]) -> None:
    run = runs(6)
    outcomes, job = run(dies=(1,), fails=(3,), bad=(4,))
    told = {number: str(outcome.error) for number, outcome in outcomes.items() if outcome.error is not None}
    assert told == {
        1: "a.root, entries 4 to 7 (unit 1): given up, the workers that tried it died",
        3: "a.root, entries 12 to 15 (unit 3): given up after 4 attempts, RuntimeError: no luck today",
        4: "a.root: entry 16 is bad",
    }
    assert (attempts(job, 3), attempts(job, 4)) == (4, 1)
    assert run.merged([unit for unit in run.units if unit.number not in told]) == [
        *range(4),
        *range(8, 12),
        *range(20, 24),
    ]


def test_a_folder_that_vanishes_ends_the_run(runs: Callable[[int], Runs]) -> None:
    with pytest.raises(OutputError, match=r"No such file or directory|there is no folder|sees no folder"):
        runs(4)(vanishes=(1,))


def test_workers_of_another_version_are_refused_by_name(client: Any, runs: Callable[[int], Runs]) -> None:
    one = next(iter(client.scheduler_info()["workers"]))
    address = client.scheduler.address
    client.run(pretend, "9.9", workers=[one])
    try:
        with (
            pytest.raises(InputError, match=f"worker {one} has another version of sparsereco: 9.9, expected 0.1.0"),
            workers(None, address),
        ):
            pass
        with pytest.raises(InputError, match=r"worker .*, process \d+, has sparsereco 9.9, expected 0.1.0"):
            client.submit(
                scale.work, Task(write_numbers, None, Path(), "", Path(), software(), 60), None, workers=[one]
            ).result()
    finally:
        client.run(pretend, None, workers=[one])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no safe path")
def test_the_working_directory_holds_no_modules_of_workers(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os; os._exit(3)")
    options = ["-n", "16", "-o", "out.root", "--workers", "1", "--light_scale", "1", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "tools" / "reco.py"), "vertex", str(SAMPLE), *options]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "16 events" in done.stderr) == (cli.DONE, True), done.stderr


def test_local_workers_leave_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    with workers(1, None) as client:
        client.wait_for_workers(1)
    assert dict(os.environ) == before


def test_local_workers_that_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "START", 0.1)
    nobody: Any = SimpleNamespace(
        cluster=object(),
        scheduler=SimpleNamespace(ncores_running=dict),
        sync=lambda ask: ask(),
        cancel=lambda futures, force: None,
    )
    task = Task(write_numbers, None, Path(), "", Path(), software(), 60)
    with pytest.raises(InputError, match=r"no worker has started for 0.1 s: is there memory for --workers\?"):
        list(run_units(nobody, task, divide([Input("a.root", "hits", 4)], 0, None, 4)))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "host-that-is-none.invalid:8786"])
def test_a_scheduler_that_is_not_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "CONNECT", "0.5s")
    with pytest.raises(InputError, match=f"--scheduler {address} cannot be reached: "), workers(None, address):
        pass


@pytest.mark.parametrize("address", ["nonsense", "tcp://host", "host:port", ""])
def test_no_client_is_made_of_what_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("distributed.Client", lambda *args, **options: made.append(args))
    with (
        pytest.raises(InputError, match=f"--scheduler {address} cannot be reached: .*like tcp"),
        workers(None, address),
    ):
        pass
    assert not made


@pytest.fixture
def reco(
    client: Any, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """`tools/reco.py vertex` in the temporary folder, with ``--scheduler`` of the two workers where it is asked for.

    On one thread, as workers are: another number of them changes the last digits.
    """
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = ("--device", "cpu", "--batch_size", "16", "--light_scale", "0.9")

    def run(*argv: object, on_workers: bool = True) -> int:
        scheduler = ("--scheduler", client.scheduler.address) if on_workers else ()
        return cli.main(tool.run, ["vertex", *map(str, argv), *options, *scheduler])

    yield run
    torch.set_num_threads(threads)


def values(file: Any) -> str:
    """All values of the output, to the last digit; NaN is like NaN."""
    return str(file["reco"].arrays().tolist())


def test_values_do_not_depend_on_workers_units_or_steps(reco: Callable[..., int]) -> None:
    given = (SAMPLE, SAMPLE, "--entry-start", 180, "-n", 40, "-q")
    assert reco(*given, "-o", "one.root", on_workers=False) == cli.DONE
    assert reco(*given, "-o", "two.root", "--unit-size", 16, "--step-size", 7) == cli.DONE
    assert reco(*given, "-o", "three.root", "--unit-size", 48, "--step-size", "1 MB") == cli.DONE
    one, *others = (uproot.open(f"{name}.root") for name in ("one", "two", "three"))
    expected = json.loads(str(one["provenance"]))
    for other in others:
        assert other["reco"].num_entries == 40
        assert values(other) == values(one)
        record = json.loads(str(other["provenance"]))
        assert {key: record[key] for key in record if key not in ("time", "command")} == {
            key: expected[key] for key in expected if key not in ("time", "command")
        }
    assert [path.name for path in Path().iterdir() if ".part" in path.name] == []


def damage(path: Path) -> bytes:
    """Spoils the last basket of a file, and gives what it was."""
    whole = path.read_bytes()
    tree = uproot.open(path)["hits"]
    branch = tree["hit_pe"]
    seek = int(branch.member("fBasketSeek")[branch.num_baskets - 1])
    path.write_bytes(whole[: seek + 60] + bytes(30) + whole[seek + 90 :])
    return whole


def write_two_baskets(path: Path) -> None:
    with RootWriter(path) as writer:
        writer.extend("hits", HITS, some_hits(16))
        writer.flush("hits")
        writer.extend("hits", HITS, some_hits(16, 16))


def test_a_bad_unit_stops_the_run_and_resume_completes_it(
    reco: Callable[..., int], write_hits: WriteHits, capsys: pytest.CaptureFixture[str]
) -> None:
    good, path = write_hits("good.root", some_hits(20)), Path("a.root")
    write_two_baskets(path)
    whole = damage(path)
    Path("out.root").write_text("the old one")
    run = ("good.root", "a.root", "-o", "out.root", "--unit-size", 16, "-f")
    assert reco(*run) == cli.WRONG_INPUT
    err = capsys.readouterr().err
    assert "a.root: entries 16 to 32 of tree 'hits' cannot be read" in err
    assert "--resume goes on from there" in err
    assert "Traceback" not in err
    assert Path("out.root").read_text() == "the old one"
    assert not Path("out.root.part").exists()
    first = Path("out.root.parts/0000000.root").stat().st_mtime_ns

    assert reco(*run, "--resume", "--seed", 5) == cli.WRONG_INPUT
    assert "holds parts of another run: settings.seed was 0, is 5" in capsys.readouterr().err
    assert reco(*run[:-1], "--resume") == cli.WRONG_INPUT  # -f is for the output, which is there
    assert "output out.root exists already" in capsys.readouterr().err
    Path("out.root").unlink()
    assert reco(*run[:-1]) == cli.WRONG_INPUT
    assert "parts of an earlier run: --resume goes on with them, -f starts again" in capsys.readouterr().err

    path.write_bytes(whole)
    assert Path("out.root.parts/0000000.root").stat().st_mtime_ns == first
    assert reco(*run, "--resume") == cli.DONE
    assert "units are done already" in capsys.readouterr().err
    assert reco(good, path, "-o", "one.root", on_workers=False) == cli.DONE
    assert values(uproot.open("out.root")) == values(uproot.open("one.root"))
    assert not Path("out.root.parts").exists()


def test_a_bad_unit_is_skipped_on_demand_and_listed(
    reco: Callable[..., int], write_hits: WriteHits, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("a.root")
    write_two_baskets(path)
    damage(path)
    write_hits("b.root", some_hits(5, 100))
    assert reco(path, "none.root", "b.root", "-o", "out.root", "--unit-size", 16, "--skip-bad-files", "-q") == cli.DONE
    assert read("out.root", RECO)["event"].tolist() == [*range(16), *range(100, 105)]
    skipped = json.loads(str(uproot.open("out.root")["provenance"]))["skipped"]
    assert ["no such file" in skipped[0], "entries 16 to 32" in skipped[1], len(skipped)] == [True, True, 2]
    assert capsys.readouterr().err.count("skipped: ") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers: expected a positive number, got 0"),
        (["--workers", "2", "--scheduler", "tcp://a:1"], "--workers and --scheduler: expected one of them"),
        (["--workers", "2", "--unit-size", "0"], "--unit-size: expected a positive number, got 0"),
        (["--workers", "2", "--unit-timeout", "0"], "--unit-timeout: expected a positive number of seconds"),
        (["--resume"], "--resume goes on with a run on workers: expected --workers or --scheduler, too"),
    ],
)
def test_wrong_options(
    reco: Callable[..., int], capsys: pytest.CaptureFixture[str], options: list, message: str
) -> None:
    assert reco(SAMPLE, "-o", "out.root", *options, on_workers=False) == cli.WRONG_INPUT
    assert message in capsys.readouterr().err
    assert os.listdir() == []  # noqa: PTH208
