"""Commands for Ray clusters: submit a job, and prepare a node or the head for its removal."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.main import get_command

from segdist.cli.app import app, say
from segdist.errors import UserError

node_app = typer.Typer(help="Commands that run on the machines of a cluster.", no_args_is_help=True)
app.add_typer(node_app, name="node")
_NO_JOBS = ("submit", "k8s", "node", "config")


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    command: Annotated[
        list[str],
        typer.Argument(
            help="A config and overrides, as for `segdist train`, or another segdist command with its arguments and options.",
            metavar="COMMAND",
        ),
    ],
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the cluster's head. Example: http://127.0.0.1:8265."
        ),
    ],
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Pass this environment variable to the job. Repeatable. Everyone with access to the cluster can read it, and "
            "Ray writes it to its logs. Nodes with an instance profile or a service account need no credentials.",
        ),
    ] = None,
    num_gpus: Annotated[
        float,
        typer.Option(
            "--num-gpus", min=0, help="GPUs for a command that runs in one process: evaluate, predict, export."
        ),
    ] = 0,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Submit the job and return, without following its log.")
    ] = False,
) -> None:
    """Run a segdist command as a job on a Ray cluster.

    `submit` prints the job's log until the job ends. Ctrl-C stops the log, not the job: run the same `submit` to see it again.
    `ray job stop` makes the job save a checkpoint and end: run the same `submit` to continue. The exit code is the job's: 75
    means that it is not finished, so submit it again. After Ctrl-C it is 130.

    \b
    Examples:
      segdist submit --address http://127.0.0.1:8265 \\
        configs/camvid_unet_r34.yaml data.uri=s3://BUCKET/camvid \\
        run.uri=s3://BUCKET/runs/camvid train.micro_batch_size=4 scale.num_ranks=4
      segdist submit tune SWEEP.yaml uri=s3://BUCKET/sweep
      segdist submit --num-gpus 1 evaluate s3://BUCKET/runs/camvid --json

    The job gets the segdist code of this machine and the files named in the command, but no folders. Keep data and runs in
    object storage, or at absolute paths that all nodes share.

    A cluster with token authentication needs its token on this machine too: in ~/.ray/auth_token, in RAY_AUTH_TOKEN, or in the
    file that RAY_AUTH_TOKEN_PATH names.
    """
    from segdist import console
    from segdist.cluster.submit import JobClient, job_of

    commands = get_command(app).commands  # type: ignore[attr-defined]
    job = job_of(command, {name: one for name, one in commands.items() if name not in _NO_JOBS})
    if num_gpus and job.commits:
        raise UserError(
            f"--num-gpus is for commands that run in one process, but `{job.arguments[0]}` has ranks. "
            "Use scale.gpus_per_rank instead"
        )
    cluster = JobClient(address)
    id = cluster.submit(job, env or [], num_gpus)
    leave = f"to follow it again: the same command, or {cluster.ray_command('logs --follow', id)}"
    stop = f"to stop it{' (it saves a checkpoint first)' if job.commits else ''}: {cluster.ray_command('stop', id)}"
    if no_wait:
        say(f"{leave}\n{stop}")
        return
    say(f"Ctrl-C leaves the job running\n{stop}")
    try:
        code = cluster.follow(id)
    except KeyboardInterrupt:
        console.close()
        say(f"job {id} keeps running\n{leave}\n{stop}")
        sys.stdout.flush()
        os._exit(130)  # at once: the interpreter's teardown would wait for a request that is still in flight
    raise typer.Exit(code)


@node_app.command()
def watch() -> None:
    """Drain an EC2 spot machine when it is about to be reclaimed.

    The command waits for the interruption notice and then drains the machine's Ray node. The ranks there save a checkpoint
    and restart on other machines. On a machine that is not a spot instance, the command ends at once. `cluster.yaml` starts it
    on every worker.

    \b
    Example, after `ray start`:
      segdist node watch &
    """
    from segdist.cluster import node

    node.watch()


@node_app.command()
def drain(
    seconds: Annotated[
        float,
        typer.Option(min=1, help="Seconds until this machine goes away."),
    ] = 110,
    why: Annotated[str, typer.Option(help="Reason to record in Ray.")] = "drain requested",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return without waiting for the work to stop.")] = False,
) -> None:
    """Drain this machine before it is removed.

    The command tells Ray that the machine goes away, and waits until ranks, trials and jobs on it have stopped. Use it before
    you remove a machine from a cluster, and as the preStop hook of a pod.

    \b
    Example:
      segdist node drain --seconds 110

    All Ray nodes on this machine are drained, or with RAY_ADDRESS only those of that cluster. Ranks save a checkpoint at
    once, continue training, save another shortly before the time is up, and restart on other machines. Ray places no more work
    on this machine until Ray is restarted there (`ray stop`, `ray start ...`). If it is the head or the only machine, no work
    continues.

    Exit code 0 means that no work runs on the machine any more, 75 that the time was too short.
    """
    from segdist.cluster import node

    if not no_wait:
        raise typer.Exit(node.drain_and_wait(seconds, why))
    say(f"draining {node.drain(seconds, why)} Ray node(s) on this machine within {seconds:g} s")


@node_app.command()
def stop_drivers(
    seconds: Annotated[float, typer.Option(min=1, help="Seconds to wait for the drivers.")] = 100,
    dashboard: Annotated[str, typer.Option(help="URL of the head's dashboard.")] = "http://127.0.0.1:8265",
) -> None:
    """Ask the jobs started on this head node to save a checkpoint and exit.

    The head's pod calls this before it is removed. It sends SIGTERM to the drivers of submitted jobs that run on this machine
    and use Ray. A training run or a sweep saves a checkpoint and ends with exit code 75. Evaluations and predictions do not use
    Ray and are not stopped.

    \b
    Example:
      segdist node stop-drivers --seconds 100 --dashboard http://127.0.0.1:8265
    """
    from segdist.cluster import drivers

    say(f"{drivers.stop_drivers(seconds, dashboard)} driver(s) asked to stop")
