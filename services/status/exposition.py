"""/metrics in Prometheus' text format: gauges from the ledger, and every living process's own counts, by worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from sqlalchemy import Connection, text

from shared.fleet import LOST_AFTER_S, list_queues, list_workers, llm_load
from shared.progress import describe, list_runs
from shared.runs import find_run

MAX_RUNS = 20  # the newest; older ones stand still


def exposition(connection: Connection, depth: Callable[[str], int | None]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Once([*_of_runs(connection), *_of_the_fleet(connection, depth), *_of_workers(connection)]))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_runs(connection: Connection) -> Iterator[Metric]:
    items = GaugeMetricFamily("fretwork_items", "Items of a stage by state.", labels=["run", "stage", "state"])
    drops = CounterMetricFamily("fretwork_drops", "Items dropped, by reason.", labels=["run", "stage", "reason"])
    rate = GaugeMetricFamily("fretwork_items_per_second", "Over the last minute.", labels=["run", "stage"])
    eta = GaugeMetricFamily("fretwork_eta_seconds", "Until a stage is done, at this rate.", labels=["run", "stage"])
    records = GaugeMetricFamily("fretwork_records", "FRet records, label version 1.", labels=["run"])
    tokens = CounterMetricFamily(
        "fretwork_tokens", "Tokens of LLM calls: prompt, completion.", labels=["run", "stage", "model", "kind"]
    )
    state = GaugeMetricFamily("fretwork_run_state", "1 for the state that a run is in.", labels=["run", "state"])
    for listed in list_runs(connection, MAX_RUNS):
        run = listed["name"]
        seen = describe(connection, find_run(connection, listed["run_id"]))
        records.add_metric([run], seen["records"])
        state.add_metric([run, seen["state"]], 1)
        for stage in seen["stages"]:
            name = str(stage["stage"])
            open_ = stage["total"] - stage["done"] - stage["claimed"] - stage["dead"]
            for what, amount in (("open", open_), *((what, stage[what]) for what in ("claimed", "done", "dead"))):
                items.add_metric([run, name, what], amount)
            for reason, amount in stage["reasons"].items():
                drops.add_metric([run, name, reason], amount)
            rate.add_metric([run, name], stage["rate_1m"])
            if stage["eta_s"] is not None:
                eta.add_metric([run, name], stage["eta_s"])
        for usage in seen["usage"]:
            for kind in ("prompt", "completion"):
                labels = [run, str(usage["stage"]), usage["model"], kind]
                tokens.add_metric(labels, usage[f"{kind}_tokens"])
    yield from (items, drops, rate, eta, records, tokens, state)


def _of_the_fleet(connection: Connection, depth: Callable[[str], int | None]) -> Iterator[Metric]:
    doorbells = GaugeMetricFamily("fretwork_queue_depth", "Doorbells in a queue.", labels=["queue"])
    ready = GaugeMetricFamily("fretwork_queue_ready_shards", "Shards that a queue waits for.", labels=["queue"])
    oldest = GaugeMetricFamily("fretwork_queue_oldest_seconds", "The longest wait of a shard.", labels=["queue"])
    for queue in list_queues(connection, depth):
        if queue.depth is not None:
            doorbells.add_metric([queue.queue], queue.depth)
        ready.add_metric([queue.queue], queue.ready_shards)
        oldest.add_metric([queue.queue], queue.oldest_s or 0.0)
    workers = GaugeMetricFamily("fretwork_workers", "Processes, alive or lost.", labels=["queue", "state"])
    seen = [(worker.queue, worker.state) for worker in list_workers(connection)]
    for labels in sorted(set(seen)):
        workers.add_metric(labels, seen.count(labels))
    in_flight = GaugeMetricFamily("fretwork_llm_in_flight", "Calls in flight.", labels=["endpoint"])
    limit = GaugeMetricFamily("fretwork_llm_limit", "Calls allowed in flight.", labels=["endpoint"])
    waiting = GaugeMetricFamily("fretwork_llm_waiting", "Requests queued at the server.", labels=["endpoint"])
    for endpoint in llm_load(connection).endpoints:
        in_flight.add_metric([endpoint.endpoint], endpoint.in_flight)
        limit.add_metric([endpoint.endpoint], endpoint.limit)
        if endpoint.waiting is not None:
            waiting.add_metric([endpoint.endpoint], endpoint.waiting)
    yield from (doorbells, ready, oldest, workers, in_flight, limit, waiting)


def _of_workers(connection: Connection) -> list[Metric]:
    """What each living process counted, under one family per name, with a label `worker`."""
    rows = connection.execute(
        text(
            "SELECT worker, metrics FROM workers WHERE seen_at > now() - make_interval(secs => :lost_after_s) "
            "ORDER BY worker"
        ),
        {"lost_after_s": LOST_AFTER_S},
    )
    families: dict[str, Metric] = {}
    for worker, metrics in rows:
        for own in text_string_to_metric_families(metrics):
            family = families.setdefault(own.name, Metric(own.name, own.documentation, own.type))
            for sample in own.samples:
                family.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
    return list(families.values())
