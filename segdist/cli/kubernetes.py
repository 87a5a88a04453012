"""The command for clusters of Kubernetes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from segdist.cli.app import Json, app, machine, say


@app.command()
def k8s(
    config: Annotated[str, typer.Argument(help="A YAML config or a sweep file (path or URI).")],
    out: Annotated[str, typer.Option(help="Folder for the YAML files (path or s3://).")],
    image: Annotated[str, typer.Option(help="REGISTRY/NAME:TAG of the image that the Dockerfile makes.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.field=value ..., as of `segdist train` or `segdist tune`.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job. [default: the config's file name]")] = None,
    namespace: Annotated[str | None, typer.Option(help="Namespace. [default: kubectl's]")] = None,
    ranks_per_worker: Annotated[int, typer.Option(help="Ranks, and so GPUs, of a worker pod.")] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Worker pods. [default: as many as a run, or max_concurrent trials, need]")
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option(help="Of a sweep: Ray's autoscaler adds pods up to so many. [default: none]")
    ] = None,
    memory_gb: Annotated[int, typer.Option(help="Memory of a worker pod for each of its ranks, GiB.")] = 16,
    spot: Annotated[
        Literal["aks", "eks", "gke", "karpenter"] | None,
        typer.Option(help="Workers on the spot nodes of this cloud, the head off them."),
    ] = None,
    service_account: Annotated[str, typer.Option(help="Service account of the pods.")] = "segdist",
    identity: Annotated[
        str | None,
        typer.Option(
            help="Role of that account: arn:aws:iam::ACCOUNT:role/NAME, or NAME@PROJECT.iam.gserviceaccount.com."
        ),
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="Name of a Secret whose keys become environment variables. Repeatable.")
    ] = None,
    volume: Annotated[
        str | None, typer.Option(help="CLAIM:/PATH, a claim that all pods mount there, for data and runs without S3.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Kueue's LocalQueue that admits the jobs.")] = None,
    deadline_hours: Annotated[float, typer.Option(help="A job is ended after so many hours.")] = 72.0,
    retries: Annotated[
        int, typer.Option(help="How often a job that failed gets a new cluster, which goes on with the run.")
    ] = 3,
    images: Annotated[str | None, typer.Option(help="Folder of images: a job that predicts them, too.")] = None,
    predictions: Annotated[str | None, typer.Option(help="Where these predictions go.")] = None,
    json: Json = False,
) -> None:
    """Write what KubeRay needs to run a config or a sweep: plain YAML for kubectl and kustomize.

    Example: `segdist k8s configs/camvid_segformer_b0.yaml data.uri=s3://B/data run.uri=s3://B/run train.micro_batch_size=4
    scale.num_ranks=4 --image REGISTRY/segdist:0.1.0 --spot karpenter --out k8s/camvid`, then `kubectl apply -k k8s/camvid`

    All values are checked first. The job continues its run in every new cluster; docs/kubernetes.md tells what dies when.
    """
    from segdist import storage
    from segdist.cluster.kube import MADE, ManifestOptions, manifests

    ask = ManifestOptions(
        config, tuple(overrides or ()), image, name, namespace, ranks_per_worker, workers, max_workers, memory_gb,
        spot, service_account, identity, tuple(secret or ()), volume, queue, deadline_hours, retries, images, predictions,
    )  # fmt: skip
    files = manifests(ask)
    storage.check_writable(out)
    left = [name for name in storage.names(out) if name.endswith(".yaml") and name not in files]
    left = [name for name in left if MADE in storage.read(storage.join(out, name))]
    for file, text in files.items():
        storage.write(storage.join(out, file), text.encode())
    say(f"written: {', '.join(files)}")
    if left:
        say(f"warning: {out} still holds {', '.join(left)}, of an earlier command; delete what you do not need")
    theirs = [f"Secret {name}" for name in secret or ()] + ([f"claim {volume.partition(':')[0]}"] if volume else [])
    say(
        "next, once per namespace: "
        + (f"the {', '.join(theirs)} must be there; " if theirs else "")
        + f"kubectl apply -f {storage.join(out, 'serviceaccount.yaml')}\nthen: kubectl apply -k {out}"
    )
    machine(json, {"out": out, "files": list(files)})
