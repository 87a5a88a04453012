"""Commands for clusters: send a job to one, and what its machines run beside Ray."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.main import get_command

from segdist.cli.app import app, say
from segdist.errors import UserError

node_app = typer.Typer(help="For the machines of a cluster, beside Ray.", no_args_is_help=True)
app.add_typer(node_app, name="node")
_NO_JOBS = ("submit", "k8s", "node", "config")


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    command: Annotated[
        list[str],
        typer.Argument(
            help="What to do there: a config and overrides as `segdist train` takes them, or a command of segdist by its name, "
            "and its arguments and options.",
            metavar="command",
        ),
    ],
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS", help="The dashboard of the cluster's head, such as http://127.0.0.1:8265."
        ),
    ],
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Give the job this environment variable as it is here; more than once for several. Who has the cluster's "
            "token can read it, and Ray's logs on the nodes hold it; where nodes have rights of their own (an instance "
            "profile, a service account) none is needed.",
        ),
    ] = None,
    num_gpus: Annotated[
        float,
        typer.Option("--num-gpus", min=0, help="GPUs for a command that is one process: evaluate, predict, export."),
    ] = 0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log.")] = False,
) -> None:
    """Run a command of segdist as a job on a Ray cluster, and follow its log.

    Example: `segdist submit --address http://127.0.0.1:8265 configs/camvid_unet_r34.yaml data.uri=s3://BUCKET/camvid
    run.uri=s3://BUCKET/runs/camvid train.micro_batch_size=4 scale.num_ranks=4`

    Others: `segdist submit tune SWEEP.yaml ...`, `segdist submit --num-gpus 1 evaluate s3://BUCKET/runs/camvid --json`.

    The code of this machine and the files named in the command travel with the job; folders do not, so data and runs lie in
    object storage. Ctrl-C leaves the job running, and the same command comes back to it. `ray job stop` lets it commit first;
    afterwards the same command continues the run. The exit code is the command's own: 75 means not finished, submit again.

    A cluster with tokens wants its token here too: in ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names.
    """
    from segdist import console
    from segdist.cluster.submit import Cluster, job_of

    commands = get_command(app).commands  # type: ignore[attr-defined]
    job = job_of(command, {name: one for name, one in commands.items() if name not in _NO_JOBS})
    if num_gpus and job.commits:
        raise UserError(
            f"--num-gpus is for a command that is one process, and `{job.arguments[0]}` has ranks: say scale.gpus_per_rank"
        )
    cluster = Cluster(address)
    id = cluster.submit(job, env or [], num_gpus)
    leave = f"come back: the same command, or {cluster.by_ray('logs --follow', id)}"
    stop = f"stop it{' (it commits first)' if job.commits else ''}: {cluster.by_ray('stop', id)}"
    if no_wait:
        say(f"{leave}\n{stop}")
        return
    say(f"Ctrl-C leaves it running; {stop}")
    try:
        code = cluster.follow(id)
    except KeyboardInterrupt:
        console.close()
        say(f"left: job {id} goes on\n{leave}\n{stop}")
        sys.stdout.flush()
        os._exit(130)  # at once: an answer may be on its way still, in a thread that the interpreter's teardown meets
    raise typer.Exit(code)


@node_app.command()
def watch() -> None:
    """On a spot machine of EC2: wait for the notice that it will be taken away, and drain its node of Ray in time.

    Example: `segdist node watch &`, after `ray start`.

    The ranks on it commit a checkpoint, and start again elsewhere. It ends at once on a machine that is not spot.
    `cluster.yaml` starts it on every worker.
    """
    from segdist.cluster import node

    node.watch()


@node_app.command()
def drain(
    seconds: Annotated[
        float,
        typer.Option(min=1, help="After which this machine goes; its ranks are to have left some seconds before."),
    ] = 110,
    why: Annotated[str, typer.Option(help="What Ray's records will say.")] = "asked to go",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Only tell Ray.")] = False,
) -> None:
    """Tell Ray that this machine goes, and wait until ranks, trials and jobs have left it. For the preStop hook of a pod.

    Example: `segdist node drain --seconds 110`, before you take a machine out of a cluster.

    It concerns every node of Ray on this machine, or those of the cluster at RAY_ADDRESS alone. Ranks commit at once, train on,
    commit again shortly before the time is over, and start again on other machines. Afterwards Ray gives this machine no more
    work until it is started anew on it (`ray stop`, `ray start ...`); where it is the head, or the only one, no work goes on.

    Exit code 0 when they have left, 75 when the time was too short for them.
    """
    from segdist.cluster import node

    if not no_wait:
        raise typer.Exit(node.leave(seconds, why))
    say(f"{node.drain(seconds, why)} node(s) of Ray on this machine drain, within {seconds:g} s")


@node_app.command()
def stop_drivers(
    seconds: Annotated[float, typer.Option(min=1, help="How long they may take.")] = 100,
    dashboard: Annotated[str, typer.Option(help="Address of the head's dashboard.")] = "http://127.0.0.1:8265",
) -> None:
    """Let the commands that run beside this head of Ray commit and end. What the head's pod calls before it goes.

    Example: `segdist node stop-drivers --seconds 100 --dashboard http://127.0.0.1:8265`

    It concerns the submitted jobs of that dashboard whose drivers run on this machine and have joined Ray: each gets SIGTERM,
    and a training or a sweep ends with 75. An evaluation or predictions, which commit nothing, do not join it.
    """
    from segdist.cluster import drivers

    say(f"{drivers.stop_drivers(seconds, dashboard)} driver(s) asked to end")
