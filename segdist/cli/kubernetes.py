"""The command for Kubernetes clusters: k8s."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from segdist.cli.app import Json, app, print_json, say


@app.command()
def k8s(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML config or a sweep file (path or URI).")],
    out: Annotated[str, typer.Option(help="Folder for the YAML files (path or s3://).")],
    image: Annotated[str, typer.Option(help="Container image built from the Dockerfile, as REGISTRY/NAME:TAG.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDES", help="Fields to change, as for `segdist train` or `segdist tune`."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job. [default: the config's file name]")] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the job. [default: kubectl's current one]")
    ] = None,
    ranks_per_worker: Annotated[int, typer.Option(help="Ranks per worker pod.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(help="Number of worker pods. [default: enough for a run, or for max_concurrent trials]"),
    ] = None,
    max_workers: Annotated[
        int | None,
        typer.Option(
            help="For a sweep: let Ray's autoscaler add worker pods up to this number. [default: no autoscaling]"
        ),
    ] = None,
    memory_gb: Annotated[int, typer.Option(help="Memory per rank in GiB.")] = 16,
    spot: Annotated[
        Literal["aks", "eks", "gke", "karpenter"] | None,
        typer.Option(help="Put the workers on spot nodes of this provider, and the head on other nodes."),
    ] = None,
    service_account: Annotated[str, typer.Option(help="Kubernetes service account of the pods.")] = "segdist",
    identity: Annotated[
        str | None,
        typer.Option(
            help="Cloud role of the service account: arn:aws:iam::ACCOUNT:role/NAME on AWS, or "
            "NAME@PROJECT.iam.gserviceaccount.com on Google Cloud."
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(help="Name of a Secret whose keys become environment variables of the pods. Repeatable."),
    ] = None,
    volume: Annotated[
        str | None,
        typer.Option(
            help="Volume for data and runs without S3, as CLAIM:/PATH: all pods mount this PersistentVolumeClaim at this path."
        ),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(help="LocalQueue of Kueue that admits the jobs. [default: no Kueue]")
    ] = None,
    deadline_hours: Annotated[
        float,
        typer.Option(help="End a job when its newest cluster has run for this many hours. It is not retried then."),
    ] = 72.0,
    retries: Annotated[
        int, typer.Option(help="How many times to restart a failed job on a new cluster, where it continues the run.")
    ] = 3,
    images: Annotated[
        str | None, typer.Option(help="Folder of images (URI). Also write a job that predicts their masks.")
    ] = None,
    predictions: Annotated[str | None, typer.Option(help="Folder for these predictions (URI).")] = None,
    json: Json = False,
) -> None:
    """Write KubeRay manifests for a run or a sweep.

    The manifests are plain YAML for kubectl and kustomize. All values are checked before anything is written. If the cluster is
    lost, the job continues its run on a new one. docs/kubernetes.md explains what happens when pods and nodes are lost.

    \b
    Example:
      segdist k8s configs/camvid_segformer_b0.yaml data.uri=s3://B/data \\
        run.uri=s3://B/run train.micro_batch_size=4 scale.num_ranks=4 \\
        --image REGISTRY/segdist:0.1.0 --spot karpenter --out k8s/camvid
      kubectl apply -k k8s/camvid
    """
    from segdist import storage
    from segdist.cluster.kube import MADE_BY, ManifestOptions, manifests

    options = ManifestOptions(
        config, tuple(overrides or ()), image, name, namespace, ranks_per_worker, workers, max_workers, memory_gb,
        spot, service_account, identity, tuple(secret or ()), volume, queue, deadline_hours, retries, images, predictions,
    )  # fmt: skip
    files = manifests(options)
    storage.check_writable(out)
    left = [name for name in storage.names(out) if name.endswith(".yaml") and name not in files]
    left = [name for name in left if MADE_BY in storage.read(storage.join(out, name))]
    for file, text in files.items():
        storage.write(storage.join(out, file), text.encode())
    say(f"written: {', '.join(files)}")
    if left:
        say(
            f"warning: {out} still holds files of an earlier command: {', '.join(left)}. Delete them if you do not need them"
        )
    needed = [f"Secret {name}" for name in secret or ()] + ([f"claim {volume.partition(':')[0]}"] if volume else [])
    if needed:
        say(f"these must exist in the namespace: {', '.join(needed)}")
    say(
        f"once per namespace: kubectl apply -f {storage.join(out, 'serviceaccount.yaml')}\nthen: kubectl apply -k {out}"
    )
    print_json(json, {"out": out, "files": list(files)})
