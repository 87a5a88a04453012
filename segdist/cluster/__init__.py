"""Work sent to a cluster: jobs for Ray (`submit`), manifests for KubeRay (`kube`), and what a node runs before it goes."""

__all__ = ["drivers", "kube", "node", "submit"]
