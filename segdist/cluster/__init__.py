"""Work on clusters: jobs for Ray (`submit`), manifests for KubeRay (`kube`), and what a node runs before it goes away."""

__all__ = ["drivers", "kube", "node", "submit"]
