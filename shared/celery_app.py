"""Celery's wiring, all of it. The queue is a doorbell: a message is a shard's id, and losing one loses nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from celery import Celery
from celery.signals import setup_logging
from kombu.entity import Queue

from shared import telemetry
from shared.settings import settings
from shared.stages import QUEUES, ROUTES, Stage, task_name

app = Celery("fretwork")
app.conf.update(
    broker_url=settings().require_broker_url(),
    broker_connection_retry_on_startup=True,
    # longer than any shard of a run; a training outlasts it, and its second doorbell claims nothing (celery #5935)
    broker_transport_options={"visibility_timeout": 3600, "socket_keepalive": True, "health_check_interval": 30},
    task_queues=[Queue(name) for name in QUEUES],  # type: ignore[no-untyped-call]
    task_create_missing_queues=False,
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    result_backend=None,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    worker_send_task_events=False,
)


@setup_logging.connect  # type: ignore[untyped-decorator]
def _own_logging(**_: Any) -> None:
    """Keeps Celery from putting its own handlers in the place of ours."""
    telemetry.configure()


def ring(stage: Stage, shard_ids: Iterable[UUID]) -> None:
    """Rings the doorbell of each shard: call it after the commit that made it ready."""
    for shard_id in shard_ids:
        app.send_task(task_name(stage), args=[str(shard_id)], queue=ROUTES[stage].queue)
