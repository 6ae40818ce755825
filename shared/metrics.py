"""What this process counts of its own work, for Prometheus; the status API shows it for every living process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, generate_latest

disable_created_metrics()  # type: ignore[no-untyped-call]
_registry = CollectorRegistry()

SHARD_SECONDS = Histogram(
    "fretwork_shard_seconds",
    "How long a shard was in hand, and how that ended: done, given back, failed, lost.",
    ("stage", "outcome"),
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900),
    registry=_registry,
)
LLM_CALL_SECONDS = Histogram(
    "fretwork_llm_call_seconds",
    "How long an LLM server took for a call, and its status, or timeout, or error where no answer came.",
    ("endpoint", "kind", "status"),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
    registry=_registry,
)


def exposition() -> str:
    """All of it in Prometheus' text format."""
    return generate_latest(_registry).decode()
