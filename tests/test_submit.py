"""`segdist submit`: what travels and what is refused, and on a real head with tokens, the whole road."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forks
import pytest
import store as stores
import yaml
from conftest import ROOT, tree
from fault_proxy import Fault, spoiling
from ray.job_submission import JobStatus
from ray_head import BIN, Head
from typer.main import get_command
from typer.testing import CliRunner

from segdist import storage
from segdist.cli import app, cluster
from segdist.cluster import submit
from segdist.cluster.submit import client as sending
from segdist.cluster.submit import connection, job_log
from segdist.cluster.submit import job as jobs
from segdist.errors import RanksError, UserError
from segdist.runs import checkpoints, record
from segdist.sweep import plan

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
SIX = {"train": {"num_steps": 6}, "eval": {"every_steps": 3, "num_previews": 0}, "optim": {"warmup_steps": 0}}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with configs of a run and a sweep, and things that must stay at home."""
    (tmp_path / "configs/sweeps").mkdir(parents=True)
    run = tree("s3://bucket/data", "s3://bucket/run", **SIX)
    (tmp_path / "configs/run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    sweep = {"uri": "s3://bucket/sweep", "config": "../run.yaml", "space": {"optim.lr": {"grid": [1e-3, 1e-2]}}}
    (tmp_path / "configs/sweeps/lr.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    (tmp_path / "runs/photos").mkdir(parents=True)
    (tmp_path / "names.txt").write_text("sky\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_config_alone_is_a_training_on_ray(files: Path) -> None:
    job = submit.job_of(["configs/run.yaml", "scale.num_ranks=2"], COMMANDS)
    assert job.arguments == ["train", "files/config/run.yaml", "scale.launcher=ray", "scale.num_ranks=2"]
    assert job.uri == "s3://bucket/run"


def test_a_sweep_takes_its_config_along_wherever_that_lies(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit.job_of(["tune", "configs/sweeps/lr.yaml", "config=../run.yaml", "budget.num_trials=2"], COMMANDS)
    assert job.arguments == ["tune", "files/sweep/lr.yaml", "config=base/config.yaml", "budget.num_trials=2"]
    assert job.uri == "s3://bucket/sweep"
    here = plan.read("configs/sweeps/lr.yaml")
    jobs.write_working_dir(job, files / "packed")
    monkeypatch.chdir(files / "packed")
    there = plan.read(job.arguments[1], job.arguments[2:])
    assert (there.base, there.sweep.space) == (here.base, here.sweep.space)


def test_the_best_of_a_sweep_is_trained_without_a_file(files: Path) -> None:
    job = submit.job_of(["--from-sweep", "s3://bucket/sweep", "run.uri=s3://bucket/best"], COMMANDS)
    assert job.arguments == [
        "train",
        "--from-sweep",
        "s3://bucket/sweep",
        "run.uri=s3://bucket/best",
        "scale.launcher=ray",
    ]
    assert (job.files, job.uri) == ({}, "s3://bucket/best")


def test_files_at_relative_paths_travel_and_all_else_stays_as_it_is(files: Path) -> None:
    outside = files.parent / "palette.txt"
    for path in (outside, files / "scores.json"):
        path.write_text("", encoding="utf-8")
    job = submit.job_of(
        ["prepare", "s3://b/photos", "s3://b/data", "--names=names.txt", f"--palette={outside}", "--val-share", "0.2"],
        COMMANDS,
    )
    assert job.arguments[3:] == ["--names=files/0/names.txt", f"--palette={outside}", "--val-share", "0.2"]
    assert set(job.files) == {"files/0/names.txt"}
    job = submit.job_of(["evaluate", "s3://b/run", "--out", "s3://b/scores.json", "--json"], COMMANDS)
    assert (job.arguments[2:], job.files) == (["--out", "s3://b/scores.json", "--json"], {})
    for words in (
        ["push", "s3://b/run", "me/model"],
        ["predict", "me/model", "s3://b/photos", "--out", "s3://b/masks"],
    ):
        assert submit.job_of(words, COMMANDS).arguments == words
    job = submit.job_of(["doctor", "configs/run.yaml", "--sample", "50"], COMMANDS)
    assert job.arguments[3:] == ["--sample", "50"]
    job = submit.job_of(["doctor", "configs/run.yaml", "--json", "scale.num_ranks=2"], COMMANDS)
    assert job.arguments == ["doctor", "files/config/run.yaml", "scale.launcher=ray", "--json", "scale.num_ranks=2"]
    assert job.uri is None  # it makes no run
    job = submit.job_of(["configs/run.yaml", f"train.init_from={outside}"], COMMANDS)
    assert job.arguments[-1] == f"train.init_from={outside}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["configs/run.yaml", "run.uri=runs/here"], "run.uri runs/here: a job cannot access folders on this machine"),
        (["configs/run.yaml", "model.size=null", "model.weights=./mit-b0"], "model.weights ./mit-b0: a job cannot access"),
        (["configs/run.yaml", "train.num_step=5"], "`train.num_steps`"),
        (["configs/run.yaml", "scale.num_ranks=3"], "3 ranks cannot share 2 micro-batches per step"),
        (["tune", "configs/sweeps/lr.yaml", "set.scale.num_ranks=3"], "3 ranks cannot share 2 micro-batches per step"),
        (["tune", "configs/sweeps/lr.yaml", "uri=sweeps/lr"], "uri sweeps/lr: a job cannot access"),
        (["evaluate", "runs/photos"], "runs/photos: a job cannot access folders on this machine"),
        (["evaluate", "s3://b/run", "--out", "scores.json"], "--out scores.json: a job cannot access"),
        (["predict", "s3://b/run", "s3://b/photos", "--out=masks"], "--out masks: a job cannot access"),
        (["doctor", "configs/run.yaml", "train.num_step=5"], "`train.num_steps`"),
        (["evaluate", "s3://b/run", "--json", "./runs/never"], "./runs/never: a job cannot access"),
        (["export", "s3://b/run", "exported"], "exported: a job cannot access"),
        (["predict", "s3://b/run", "s3://b/i", "--limits", "5"], "segdist predict has no option --limits"),
        (["--from-sweep", "s3://b/sweep", "run.uri=best"], "run.uri best"),
        (["train", "scale.num_ranks=2"], "give a config"),
        (["configs/run.yaml", "scale.launcher=local"], "would train on the cluster's head"),
        (["configs/run.yaml", "data.uri=http://me:password@host/data"], "looks like a credential"),
        (["tune", "configs/sweeps/lr.yaml", "set.train.init_from=./run"], "train.init_from ./run: a job cannot access"),
    ],
)  # fmt: skip
def test_what_cannot_work_there_is_told_here(files: Path, arguments: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("(", r"\(")):
        submit.job_of(arguments, COMMANDS)


def test_what_travels_is_our_code_and_those_files(files: Path, tmp_path: Path) -> None:
    job = submit.job_of(["configs/run.yaml"], COMMANDS)
    folder = tmp_path / "packed"
    folder.mkdir()
    num, size = jobs.write_working_dir(job, folder)
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert len(found) == num and size < 4 << 20
    assert {path.parts[0] for path in found} == {"segdist", "files"}
    assert {path.suffix for path in found} <= {".py", ".yaml", ".json", ".txt"}
    code = (
        "import segdist.cli, segdist.launch.on_ray, segdist.sweep.tune, segdist.predict.files; print(segdist.__file__)"
    )
    done = forks.run(
        ["-c", code], cwd=folder, bare=True, check=True
    )  # whole enough to run, and it is this copy that runs
    assert Path(done.stdout.strip()).is_relative_to(folder)


def test_what_is_too_large_to_travel_is_named(files: Path, tmp_path: Path) -> None:
    with (files / "names.txt").open("wb") as file:
        file.truncate(60 << 20)
    (tmp_path / "packed").mkdir()
    with pytest.raises(UserError, match=r"\d+ MiB, more than the limit of 50 MiB\. The largest is .*names.txt"):
        jobs.write_working_dir(
            submit.job_of(["prepare", "s3://b/x", "--names", "names.txt"], COMMANDS), tmp_path / "packed"
        )


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:6379", "Give the address of the cluster's dashboard"),
        ("ray://127.0.0.1:10001", "Give the address of the cluster's dashboard"),
        ("http://127.0.0.1:1", "Failed to connect"),
        ("http://me:word@127.0.0.1:8265", r"http://\.\.\.@127\.0\.0\.1:8265: expected http"),
    ],
)
def test_an_address_that_leads_nowhere_is_told(files: Path, address: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        submit.JobClient(address)


def test_ids_are_readable_and_the_next_of_their_run(files: Path) -> None:
    job = submit.job_of(["configs/run.yaml", "run.uri=s3://bucket/Größe 1/"], COMMANDS)
    first = sending._next_id(job, [])
    assert re.fullmatch("train-Gr-e-1-[0-9a-f]{6}-1", first)
    stem = first.removesuffix("1")
    assert sending._next_id(job, ["x", f"{stem}9", f"{stem}10", f"{stem}11-again"]) == f"{stem}11"
    other = submit.job_of(["configs/run.yaml", "run.uri=s3://else/Größe 1"], COMMANDS)
    assert sending._next_id(other, []) != first


@pytest.mark.parametrize(
    "arguments", [["configs/run.yaml"], ["evaluate", "s3://b/run"], ["predict", "s3://b/run", "s3://b/i"]]
)
def test_the_same_command_finds_the_job_that_has_not_ended(files: Path, arguments: list[str]) -> None:
    job = submit.job_of(arguments, COMMANDS)

    def known(status: JobStatus, **changes: Any) -> Any:
        return SimpleNamespace(
            **{"status": status, "entrypoint": job.entrypoint, "metadata": {"segdist": job.uri or ""}, **changes}
        )

    assert sending._is_same(known(JobStatus.RUNNING), job)
    assert not sending._is_same(known(JobStatus.STOPPED), job)
    assert not sending._is_same(known(JobStatus.RUNNING, metadata={}), job)  # not of ours
    other = submit.job_of(
        [*arguments, *([] if job.uri else ["--json"]), *(["run.uri=s3://b/2"] if job.uri else [])], COMMANDS
    )
    assert not sending._is_same(known(JobStatus.RUNNING), other)
    again = submit.job_of(["configs/run.yaml", "run.uri=s3://bucket/run/", "scale.num_ranks=2"], COMMANDS)
    assert sending._is_same(known(JobStatus.RUNNING), again) == (job.uri is not None)


def test_other_settings_than_those_at_work_are_refused_and_the_same_are_found(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit.job_of(["configs/run.yaml"], COMMANDS)
    at_work = SimpleNamespace(
        submission_id="one", status=JobStatus.RUNNING, metadata={"segdist": job.uri, "settings": job.digest()}
    )
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setattr(sending, "_connect", lambda address: SimpleNamespace(list_jobs=lambda: [at_work]))
    there = submit.JobClient("http://head")
    assert there.submit(job) == "one"
    with (files / "configs/run.yaml").open("a", encoding="utf-8") as file:
        file.write("# a word more, and nothing else\n")
    assert there.submit(submit.job_of(["configs/run.yaml"], COMMANDS)) == "one"
    monkeypatch.setenv("HF_TOKEN", "x")
    other = submit.job_of(["configs/run.yaml", "optim.lr=1"], COMMANDS)
    told = submit.job_of(["configs/run.yaml", "--json"], COMMANDS)
    for asked in (
        lambda: there.submit(other),
        lambda: there.submit(told),  # whose JSON would never come
        lambda: there.submit(job, ["HF_TOKEN"]),
        lambda: there.submit(job, [], 1),
    ):
        with pytest.raises(UserError, match=r"with other settings .* `ray job stop --address http://head one`, or"):
            asked()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as we do where there is a token, and as the caller's shell has not
    assert there.ray_command("stop", "one") == "RAY_AUTH_MODE=token ray job stop --address http://head one"


@pytest.mark.parametrize("moment", [1, 2])
def test_of_two_that_submit_one_run_at_once_the_second_finds_the_job_of_the_first(
    files: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The first one's job arrives right after the second one's list of jobs: its first, or the one before it sends."""
    job, jobs, lists = submit.job_of(["configs/run.yaml"], COMMANDS), [], []

    def list_jobs() -> list[Any]:
        lists.append(list(jobs))
        if len(lists) == moment:
            fields = {"segdist": job.uri, "settings": job.digest()}
            jobs.append(
                SimpleNamespace(submission_id=sending._next_id(job, []), status=JobStatus.RUNNING, metadata=fields)
            )
        return lists[-1]

    def submit_job(submission_id: str, **_: Any) -> str:
        assert submission_id in {one.submission_id for one in jobs}, "the run has two jobs"
        raise RuntimeError(f"Job with submission_id {submission_id} already exists.")

    monkeypatch.setattr(sending, "_connect", lambda _: SimpleNamespace(list_jobs=list_jobs, submit_job=submit_job))
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)
    assert submit.JobClient("http://head").submit(job) == sending._next_id(job, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/run.yaml", "optim.lr"], "override 'optim.lr': write it as section.field=value"),
        (
            ["tune", "configs/sweeps/lr.yaml", "budget.hours"],
            "override 'budget.hours': write it as section.field=value",
        ),
        (["evalute", "s3://b/run"], "evalute: there is no such command or config. Did you mean evaluate?"),
        (
            ["configs/run.yaml", "run.uri=runs/x", "data.uri=data/x"],
            "run.uri runs/x, data.uri data/x: a job cannot access",
        ),
    ],
)
def test_slips_are_told_before_anything_is_sent(files: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as told:
        submit.job_of(words, COMMANDS)
    assert message in str(told.value)


def test_gpus_of_a_training_are_its_ranks(files: Path) -> None:
    done = CliRunner().invoke(app, ["submit", "--address", "http://127.0.0.1:9", "--num-gpus", "1", "configs/run.yaml"])
    assert isinstance(done.exception, UserError) and "scale.gpus_per_rank" in str(done.exception)


def test_a_token_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import AuthenticationError

    def refuse(*_: Any) -> Any:
        raise AuthenticationError("Invalid")

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", refuse)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH is .*none, but there is no such file"):
        submit.JobClient("http://127.0.0.1:9")


def test_a_value_behind_env_is_refused_and_not_repeated(files: Path) -> None:
    with pytest.raises(UserError, match="give the name alone") as told:
        sending._environment(["AWS_SECRET_ACCESS_KEY=sesame"])
    assert "sesame" not in str(told.value)


def test_the_examples_of_the_help_are_commands_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    told = " ".join((cluster.submit.__doc__ or "").split())
    example = re.search(r"Examples: segdist submit --address \S+ (.*?) segdist submit", told.replace("\\", ""))
    assert example
    assert submit.job_of(example[1].split(), COMMANDS).uri == "s3://BUCKET/runs/camvid"


@pytest.mark.parametrize(
    ("status", "code", "fault", "expected"),
    [
        ("SUCCEEDED", 0, None, 0),
        ("FAILED", 2, None, 2),
        ("FAILED", 75, None, 75),
        ("STOPPED", 75, None, 75),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", 75),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", 2),  # submitted again, it would end so again
        ("FAILED", 137, "JOB_ENTRYPOINT_COMMAND_ERROR", 75),  # killed: so says the shell that Ray runs commands in
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", 75),  # where the shell has become the command
    ],
)
def test_a_job_that_was_lost_is_not_finished_and_others_end_with_their_own_code(
    status: str,
    code: int | None,
    fault: str | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    info = SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="it died", error_type=fault)
    said = ["one", "step 3/9  loss 1", "step 9/9  loss 1", "step 9/9  val mIoU 0.5", '{"a": 1}']
    monkeypatch.setattr(sending, "_connect", lambda address: None)
    monkeypatch.setattr(sending, "JobLog", lambda *about: SimpleNamespace(lines=lambda: iter(said), info=info))
    assert submit.JobClient("http://head").follow("id") == expected
    told = capsys.readouterr()
    assert told.out == '{"a": 1}\n' and "step 9/9  val mIoU 0.5" in told.err


def log_of(client: Any) -> Any:
    return sending.JobLog(client, "id", "http://head").lines()


def job_info(status: JobStatus, start_time: int = 1) -> Any:
    return SimpleNamespace(status=status, start_time=start_time)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (connection, "_QUIET_SECONDS", 0.1), (connection, "_ANSWER_SECONDS", 3.0), (job_log, "_PATIENCE_SECONDS", 1.0)
    ):  # fmt: skip
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(sending.time, "sleep", lambda seconds: None)


class Cutting:
    """A client of a cluster whose connection breaks here and there: each log it tails ends after another number of letters."""

    def __init__(self, text: str, ends: list[int]) -> None:
        self._text, self._ends, self._ended = text, ends, False

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        self._ended = not self._ends
        end = self._ends.pop(0) if self._ends else len(self._text)
        for begin in range(0, end, 7):
            yield self._text[begin : min(begin + 7, end)]
        if end % 2 and not self._ended:  # else it closes without a word
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, id: str) -> Any:
        return job_info(JobStatus.SUCCEEDED if self._ended else JobStatus.RUNNING)

    def get_job_logs(self, id: str) -> str:
        return self._text


@pytest.mark.parametrize("ends", [[], [0, 5, 5, 3, 40], [13, 26, 39], [100, 1], [1, 1, 1, 1]])
def test_a_log_is_followed_over_broken_connections_each_line_once(
    ends: list[int], hurried: None, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"line {i} of the log" for i in range(12)]
    assert list(log_of(Cutting("\n".join(lines), list(ends)))) == lines
    most = 1 if ends == [1, 1, 1, 1] else 3  # once for each silence, whatever the number of tries
    assert capsys.readouterr().err.count("its log cannot be read") <= most


class Silent:
    """A client whose log stays open and says nothing more, and whose dashboard answers as it is told."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self._answer, self._asked = answer, 0

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        yield "step one\n"
        await asyncio.sleep(60)

    def get_job_info(self, id: str) -> Any:
        self._asked += 1
        return self._answer(self._asked)

    def get_job_logs(self, id: str) -> str:
        raise RuntimeError("Request failed with status code 500: Traceback ...\n\nKeyError: no agent there\n")


def test_a_cluster_that_falls_silent_is_told_soon_and_given_up_later(
    hurried: None, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = threading.Event()  # as a dashboard does whose head has died
    lines = log_of(Silent(lambda asked: job_info(JobStatus.RUNNING) if asked == 1 else hangs.wait(60)))
    assert next(lines) == "step one"
    with pytest.raises(
        RanksError, match=r"has not answered for 0 min \(no answer within 3 s\).* Run the same command again"
    ):
        next(lines)
    hangs.set()
    assert capsys.readouterr().err.count("http://head does not answer") == 1


def test_a_job_whose_node_is_gone_with_its_log_has_ended_all_the_same(
    hurried: None, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Silent(lambda asked: job_info(JobStatus.RUNNING if asked == 1 else JobStatus.FAILED))
    assert list(log_of(client)) == ["step one"]
    assert "the end of the log cannot be read (KeyError: no agent there)" in " ".join(capsys.readouterr().err.split())


def test_a_job_that_does_not_begin_says_once_what_it_waits_for(
    hurried: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_log, "_WAIT_SECONDS", -1.0)

    def answer(asked: int) -> Any:
        info = job_info(JobStatus.PENDING if asked < 4 else JobStatus.SUCCEEDED)
        info.message = "it may be waiting for GPUs"
        return info

    list(log_of(Silent(answer)))
    assert capsys.readouterr().err.count("job id: it may be waiting for GPUs") == 1


def test_a_number_in_an_address_is_no_answer_of_the_cluster(hurried: None) -> None:
    def answer(asked: int) -> Any:
        if asked == 2:
            raise OSError("HTTPConnectionPool: Max retries exceeded with url: /api/jobs/train-exp404-3fa9c1-1")
        return job_info(JobStatus.RUNNING if asked < 4 else JobStatus.SUCCEEDED)

    assert list(log_of(Silent(answer))) == ["step one"]


@pytest.mark.parametrize("start_time", [None, 2])
def test_a_job_that_the_cluster_has_forgotten_is_told_at_once(hurried: None, start_time: int | None) -> None:
    """A head that is new knows none of that name, or another one, whose log is not ours."""

    def answer(asked: int) -> Any:
        if asked > 1 and start_time is None:
            raise RuntimeError("Request failed with status code 404: Job id does not exist")
        return job_info(JobStatus.RUNNING, 1 if asked == 1 else start_time or 1)

    lines = log_of(Silent(answer))
    assert next(lines) == "step one"
    with pytest.raises(RanksError, match=r"its head was lost\. Run the same command again") as told:
        next(lines)
    assert told.value.exit_code == 75


# -- a real head with tokens -----------------------------------------------------------------------------------------------


def on_a_head(test: Any) -> Any:
    return pytest.mark.slow(pytest.mark.ray(pytest.mark.timeout(1200)(test)))


@pytest.fixture(scope="module")
def store(street_data: str) -> Iterator[dict[str, str]]:
    """The environment of an S3 server with the data set, which this process uses too."""
    with stores.serving("tests", forks.python()) as environment:
        stores.copy(street_data, "s3://tests/data")
        yield environment


@pytest.fixture
def send(head: Head, store: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """send(*arguments) -> `segdist submit` from a folder of its own, which is not on the cluster."""

    def send(*arguments: str, token: bool = True) -> subprocess.Popen[str]:
        environment = {k: v for k, v in head.environment.items() if k in ("RAY_AUTH_TOKEN_PATH",) and token}
        env = [part for name in store for part in ("--env", name)]
        return subprocess.Popen(
            [forks.python(), "-m", "segdist", "submit", "--address", head.dashboard, *env, *arguments],
            cwd=tmp_path, env={**os.environ, **environment, "HOME": str(tmp_path)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    return send


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-4000:]
    assert "Traceback" not in err
    return out, err


def config_file(folder: Path, run: str, **sections: dict[str, Any]) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree("s3://tests/data", run, **{**SIX, **sections})), encoding="utf-8")
    return path.name


@on_a_head
def test_a_job_is_left_come_back_to_stopped_and_continued_to_its_end(
    send: Callable[..., subprocess.Popen[str]], head: Head, store: dict[str, str], tmp_path: Path
) -> None:
    run = "s3://tests/run"
    rare = {"every_steps": 100}
    sections = {"train": {"num_steps": 12}, "eval": rare, "checkpoint": rare}
    command = [config_file(tmp_path, run, **sections), "scale.num_ranks=2", "--json"]
    photos = Fault("GET", "parquet", "wait")  # the first step waits until the stop has been heard
    with spoiling(store["AWS_ENDPOINT_URL"], photos) as slow_store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", slow_store)
        both = [heard(send(*command)), heard(send(*command))]  # at the same moment
        for process, lines, _ in both:
            wait_until(process, lambda lines=lines: photos.met > 0 and "leaves the job running" in "".join(lines))
        for process, _, reader in both:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 130
            reader.join()
        told = ["".join(lines) for _, lines, _ in both]
        (id,) = {match[1] for said in told if (match := re.search(r"job (\S+) keeps running", said))}
        assert re.fullmatch("train-run-[0-9a-f]{6}-1", id)
        assert all(f"job {id} keeps running" in said and "not passed to the job" not in said for said in told)

        second, lines, reader = heard(send(*command))
        wait_until(second, lambda: f"{run}: job {id} is already active" in "".join(lines))
        environment = {**os.environ, **{k: v for k, v in head.environment.items() if k != "RAY_ADDRESS"}}
        stop = [forks.python(), str(BIN / "ray"), "job", "stop", "--no-wait", "--address", head.dashboard, id]
        subprocess.run(stop, env=environment, check=True, capture_output=True)
        wait_until(second, lambda: "stopping: committing a checkpoint" in "".join(lines))
        photos.go.set()
        assert second.wait(timeout=300) == 75
        reader.join()
        assert "2 rank(s) on cpu" in "".join(lines)  # the log from its beginning
    state = record.load(run)
    assert state is not None and state["state"] == "PREEMPTED"
    assert checkpoints.step_of(checkpoints.newest(run, print)) == state["step"] > 0

    out, said = ended(send(*command))
    assert json.loads(out)["step"] == 12
    assert "step 12/12" in said
    out, said = ended(send(*command))
    assert "is complete (step 12)" in said


@pytest.mark.long
@on_a_head
def test_a_sweep_an_evaluation_and_predictions_are_jobs_too(
    send: Callable[..., subprocess.Popen[str]], street_folder: Path, tmp_path: Path
) -> None:
    config_file(tmp_path, "s3://tests/unused")
    sweep = {"uri": "s3://tests/sweep", "config": "run.yaml", "space": {"optim.lr": {"grid": [1e-3, 1e-2]}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**sweep, "confirm": {"num_best": 0}}), encoding="utf-8")
    out, said = ended(send("tune", "sweep.yaml", "--json"))
    found = json.loads(out)
    assert found["state"] == "SUCCEEDED" and len(storage.names("s3://tests/sweep/trials")) == 2
    assert "best: trial" in said and "sdk.py" not in said  # what Ray's own client has to say

    best = found["best_checkpoint"]
    out, said = ended(send("evaluate", best, "--json"))
    assert json.loads(out)["miou"] == pytest.approx(found["best_score"], abs=1e-12)

    image = sorted((street_folder / "images").iterdir())[0]
    (tmp_path / "street.png").write_bytes(image.read_bytes())
    ended(send("predict", best, "street.png", "--out", "s3://tests/masks"))
    assert "street.png" in storage.names("s3://tests/masks")
    _, said = ended(send("predict", best, "street.png", "--out", "masks"), 2)
    assert "--out masks: a job cannot access folders on this machine" in said


@on_a_head
def test_a_job_without_rights_and_a_person_without_the_token_are_told(
    send: Callable[..., subprocess.Popen[str]], head: Head, store: dict[str, str], tmp_path: Path
) -> None:
    path = config_file(tmp_path, "s3://tests/no-rights")
    bare = subprocess.run(
        [forks.python(), "-m", "segdist", "submit", "--address", head.dashboard, "--env", "AWS_ENDPOINT_URL", path],
        cwd=tmp_path, env={**os.environ, "RAY_AUTH_TOKEN_PATH": head.environment["RAY_AUTH_TOKEN_PATH"]},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert bare.returncode == 2, bare.stderr
    assert "not passed to the job: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in bare.stderr
    _, said = ended(send(path, token=False), 2)
    assert "the cluster requires its token" in said
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("ab" * 32, encoding="utf-8")
    _, said = ended(send(path, token=False), 2)
    assert "the token in ~/.ray/auth_token is not this cluster's" in said


def heard(process: subprocess.Popen[str]) -> tuple[subprocess.Popen[str], list[str], threading.Thread]:
    """The process, the lines that it has said so far, and who writes them down."""
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
    reader.start()
    return process, lines, reader


def wait_until(process: subprocess.Popen[str], holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.5)
