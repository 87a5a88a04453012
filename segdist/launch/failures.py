"""How ranks ended, in words: which failed first, and which only lost another rank."""

from __future__ import annotations

from segdist.errors import UserError, is_lost_rank, last_line


def describe_failures(failures: dict[int, Exception]) -> tuple[str, bool]:
    """Return (which ranks ended and how, whether processes died).

    Errors of ranks that only lost their connection to a dead rank are a consequence and are left out.
    """
    from ray.exceptions import RayActorError

    def died(error: BaseException) -> bool:
        return isinstance(getattr(error, "health_check_failure", error), RayActorError)

    dead = sorted(rank for rank, error in failures.items() if died(error))
    if dead:
        by_node = all("its node has died" in str(failures[rank]) for rank in dead)
        how = "the node died" if by_node else "the process died (killed, out of memory, or crashed)"
        return f"rank {', '.join(map(str, dead))}: {how}", True
    first = {rank: error for rank, error in failures.items() if not is_lost_rank(error)}
    if not first:
        lost = ", ".join(map(str, sorted(failures)))
        why = last_line(next(iter(failures.values())))
        return f"rank {lost} lost the connection to another rank, whose process or machine ended ({why})", True
    return "; ".join(f"rank {rank} failed: {_message(error)}" for rank, error in sorted(first.items())), False


def _message(error: BaseException) -> str:
    return last_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {last_line(error)}"
