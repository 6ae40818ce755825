"""A run started, watched and stopped through the status API of a real stack: what it shows is what the ledger has."""

from __future__ import annotations

import itertools
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from cli.stack import running_stack
from shared.stages import QUEUES
from tests.e2e.stack import Stack
from tests.servers import until
from tests.truth import counts_and_truth

ROOT = Path(__file__).parents[2]


class Answer(NamedTuple):
    status: int
    body: Any
    location: str | None = None


class API(NamedTuple):
    url: str
    token: str

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def act(self, path: str, body: Any = None, *, token: str | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else b""
        request = urllib.request.Request(self.url + path, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answer(answer.status, json.load(answer), answer.headers["location"])
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.load(error))

    def events(self, run: str) -> Iterator[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}/events?run={run}", timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))


@pytest.fixture(scope="module")
def api(stack: Stack) -> API:
    state = running_stack(stack.home)
    assert state is not None
    assert state.addresses is not None
    assert state.addresses.status_url is not None
    return API(state.addresses.status_url, (stack.home / "status.token").read_text().strip())


@pytest.fixture(scope="module")
def watched(api: API) -> list[dict[str, Any]]:
    """What a listener was told of a run from its start to its end."""
    config = {"teacher": "offline", "seed": 77, "shard_size": 8, "labels": {"positive": "p_1"}}
    started = api.act("/runs", {"corpus": "docs", "config": config})
    assert started.status == 201, started.body
    name = started.body["run"]
    assert started.location == f"/runs/{name}"
    seen = []
    for event in api.events(name):
        seen.append(event)
        if event["state"] == "done":
            return seen
    raise AssertionError("the stream ended before the run")


def test_what_a_listener_is_told_only_grows_and_ends_as_the_ledger_has_it(
    stack: Stack, api: API, watched: list[dict[str, Any]]
) -> None:
    assert len(watched) > 2
    for before, after in itertools.pairwise(watched):
        for one, other in zip(before["stages"], after["stages"], strict=True):
            assert one["done"] <= other["done"] <= other["total"]
        assert before["records"] <= after["records"]
        assert after["conservation"]["holds"]
    last = watched[-1]
    with stack.engine.connect() as connection:
        counted, there = counts_and_truth(connection, UUID(last["run_id"]))
    assert counted == there
    assert last["records"] == there["relabel", 1, "records"]
    assert last["moved"] == there["relabel", 1, "moved"]
    now = api.get(f"/runs/{last['run']}")
    for seen in (now, last):  # when a stage began is noted within a second of it
        seen["stages"] = [{**stage, "started_at": None} for stage in seen["stages"]]
    assert now == last


def test_the_pages_of_records_hold_each_once_and_the_filters_divide_them(
    api: API, watched: list[dict[str, Any]]
) -> None:
    last = watched[-1]

    def pages(query: str) -> list[dict[str, Any]]:
        records, after = [], ""
        while True:
            page = api.get(f"/runs/{last['run']}/records?limit=7{query}{after}")
            records += page["records"]
            if page["next"] is None:
                return records
            after = f"&after={page['next']}"

    everything = pages("")
    ids = [record["query_id"] for record in everything]
    assert len(ids) == last["records"] > 20
    assert ids == sorted(set(ids))
    moved = pages("&moved=true")
    assert len(moved) == last["moved"] > 0
    for record in moved:
        assert record["positive"]["passage"]["passage_id"] != record["seed"]["passage"]["passage_id"]
        assert record["positive_fused_score"] >= record["seed_fused_score"]
        assert record["positive"]["passage"]["text"]
        assert record["positive"]["ql"] is not None
    stayed = pages("&moved=false")
    assert sorted(ids) == sorted(record["query_id"] for record in moved + stayed)
    disagree = pages("&disagree=true")
    assert 0 < len(disagree) < len(everything)
    assert all(max(record["positive_ql_rank"], record["positive_rc_rank"]) > 1 for record in disagree)
    assert len(pages("&disagree=false")) == len(everything) - len(disagree)


def test_queues_workers_and_throughput_are_those_of_the_stack(
    stack: Stack, api: API, watched: list[dict[str, Any]]
) -> None:
    workers = [worker for worker in api.get("/workers")["workers"] if worker["state"] == "alive"]
    by_queue = {worker["queue"]: worker["pid"] for worker in workers}
    assert by_queue == {name: stack.pid(name) for name in (*QUEUES, "dispatcher")}
    queues = api.get("/queues")["queues"]
    assert [(queue["queue"], queue["consumers"]) for queue in queues] == [(queue, 1) for queue in QUEUES]
    assert all(queue["depth"] is not None for queue in queues)
    last = watched[-1]
    points = api.get(f"/runs/{last['run']}/throughput?since_s=600&points=600")["points"]
    for stage in last["stages"]:
        assert sum(point["items_per_s"] * 10 for point in points if point["stage"] == stage["stage"]) == pytest.approx(
            stage["done"]
        )
    ready = api.get("/readyz")
    assert [(each["name"], each["ok"]) for each in ready["dependencies"]] == [("database", True), ("broker", True)]


def test_metrics_have_the_ledgers_figures_and_each_processs_own(api: API, watched: list[dict[str, Any]]) -> None:
    last = watched[-1]

    def families() -> dict[str, Any]:
        with urllib.request.urlopen(f"{api.url}/metrics", timeout=10) as answer:
            found = list(text_string_to_metric_families(answer.read().decode()))
        assert len({family.name for family in found}) == len(found), "each family once"
        return {family.name: family for family in found}

    def shards_done() -> float:
        seconds = families().get("fretwork_shard_seconds")
        return sum(
            float(sample.value)
            for sample in (seconds.samples if seconds else [])
            if sample.name.endswith("_count") and sample.labels["outcome"] == "done" and "worker" in sample.labels
        )

    done = {
        sample.labels["stage"]: sample.value
        for sample in families()["fretwork_items"].samples
        if sample.labels["run"] == last["run"] and sample.labels["state"] == "done"
    }
    assert done == {stage["stage"]: stage["done"] for stage in last["stages"]}
    until(lambda: shards_done() >= 5, 15)  # what a worker counted comes with its next heartbeat
    assert families()["fretwork_workers"].type == "gauge"
    assert families()["fretwork_shard_seconds"].type == "histogram"


def test_a_run_is_paused_resumed_and_cancelled_and_what_cannot_be_is_a_conflict(stack: Stack, api: API) -> None:
    with stack.nobody_writes("queries"):  # so that it does not end meanwhile
        run = api.act("/runs", {"corpus": "docs", "config": {"seed": 78}}).body["run"]
        assert api.act(f"/runs/{run}/pause", token="wrong").status == 401  # noqa: S106
        paused = api.act(f"/runs/{run}/pause")
        assert (paused.status, paused.body["state"]) == (200, "paused")
        assert run in paused.body["paused_reason"]
        again = api.act(f"/runs/{run}/pause")
        assert (again.status, "is paused" in again.body["detail"]) == (409, True)
        resumed = api.act(f"/runs/{run}/resume", {"max_hours": 2})
        assert (resumed.status, resumed.body["state"]) == (200, "running")
        assert resumed.body["deadline_at"]
        refused = api.act(f"/runs/{run}/resume", {"max_tokens": 5})
        assert (refused.status, "tokens" in refused.body["detail"]) == (422, True)
        assert api.act(f"/runs/{run}/retry").body == {"shards": 0}
        assert api.act(f"/runs/{run}/cancel").body["state"] == "cancelled"
        assert api.act(f"/runs/{run}/resume").status == 409
    with stack.engine.connect() as connection:
        held = "SELECT count(*) FROM shards JOIN runs USING (run_id) WHERE name = :run AND shards.state = 'claimed'"
        until(lambda: connection.execute(text(held), {"run": run}).scalar_one() == 0, 30)


def test_what_cannot_be_started_is_refused_with_a_reason(api: API, watched: list[dict[str, Any]]) -> None:
    earlier = watched[-1]["run"]
    for wanted, status, words in (
        ({"corpus": "nothing"}, 404, "fretwork corpus add"),
        ({"corpus": "docs", "like": "nobody"}, 404, "GET /runs"),
        ({"corpus": "docs", "config": {"shard_size": 0}}, 422, "config.shard_size"),
        ({"corpus": "docs", "config": {"no_such": 1}}, 422, "config.no_such"),
        ({"corpus": "docs", "config": {"teacher": "llm"}}, 422, "fretwork run start"),
        ({"corpus": "docs", "like": earlier, "config": {"teacher": "llm"}}, 422, "fretwork run start"),
        ({"corpus": "docs", "seed": 3}, 422, "seed"),
    ):
        refused = api.act("/runs", wanted)
        assert (refused.status, words in refused.body["detail"]) == (status, True), (wanted, refused)
    alike = api.act("/runs", {"corpus": "docs", "like": earlier, "config": {"labels": {"positive": "seed"}}})
    assert alike.status == 201
    expected = watched[-1]["config"]
    expected["labels"]["positive"] = "seed"
    assert alike.body["config"] == expected
    assert api.act(f"/runs/{alike.body['run']}/cancel").status == 200


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are(api: API, watched: list[dict[str, Any]]) -> None:
    with urllib.request.urlopen(f"{api.url}/metrics", timeout=10) as answer:
        there = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    told = (ROOT / "monitoring" / "grafana" / "dashboards" / "fretwork.json").read_text()
    told += (ROOT / "docs" / "operations.md").read_text()
    names = re.findall(r"\bfretwork_[a-z_]+(?=[{)\[ ,\"])", told)
    asked = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in names}
    assert asked <= set(there)
    assert len(asked) > 12


def test_workers_give_way_to_who_watches(stack: Stack) -> None:
    """Also where Linux shares the processor out by session, and a process's own niceness counts for nothing."""
    worker, status = (psutil.Process(stack.pid(name)) for name in ("generator", "status"))
    assert worker.nice() > status.nice()
    groups = [Path(f"/proc/{process.pid}/autogroup") for process in (worker, status)]
    if groups[0].exists():
        worker_nice, status_nice = (int(group.read_text().rpartition(" ")[2]) for group in groups)
        assert worker_nice > status_nice
