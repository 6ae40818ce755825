"""The whole stack in containers, from building the images to taking it down: `make test-compose`.

It needs Docker, Compose, the base images and a package index, and some ten minutes. The tests tell one story, in order.
"""

from __future__ import annotations

import json
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.demo.corpus import build
from cli.demo.harvest import SourceRoot
from cli.stack.processes import free_port
from shared.stages import QUEUES
from tests.compose.stack import ComposeStack, compose_program, run
from tests.servers import until

pytestmark = pytest.mark.compose

PASSAGES = 300
LIGHT = ("generator", "relabeler", "dispatcher", "status")
HEAVY = ("retriever", "trainer")
MIB = 1024 * 1024
CONFIG = ("--set", "shard_size=4", "--set", "queries_per_passage=2")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """Images built, nothing started. Whatever runs at the end is taken down, volumes and all."""
    folder = tmp_path_factory.mktemp("compose")
    build(folder / "corpora" / "docs", PASSAGES, roots=[SourceRoot("python", Path(sysconfig.get_paths()["stdlib"]))])
    (folder / "corpora" / "docs").chmod(0o755)
    (folder / "empty.env").touch()  # and not the .env of somebody's own stack
    made = ComposeStack(compose_program(), f"fretwork-rehearsal-{os.getpid()}", folder, free_port())
    made.compose("build", timeout_s=3600)
    made.compose("build", "cli", timeout_s=3600)
    yield made
    removing = ("run", "--rm", "-T", "--no-deps", "--user", "root", "--entrypoint", "sh", "cli", "-c")
    made.compose(*removing, "rm -rf /models/* /exports/*", check=False)  # they are the containers' user's
    made.compose("down", "--volumes", "--timeout", "5", check=False)


@pytest.fixture(scope="module")
def records(stack: ComposeStack) -> list[str]:
    """The records of a run that nobody disturbed, and of one that was, in this order of the tests below."""
    return []


def size_of(image: str) -> int:
    return int(run("docker", "image", "inspect", "--format", "{{.Size}}", image))


@pytest.mark.parametrize("service", [*LIGHT, *HEAVY, "cli"])
def test_an_image_is_small_unprivileged_and_holds_its_own_service(stack: ComposeStack, service: str) -> None:
    image = f"fretwork/{service}:0.1.0"
    look = (
        "import importlib.util, json, os; print(json.dumps({'uid': os.getuid(), "
        "'torch': importlib.util.find_spec('torch') is not None, "
        "'rooms': sorted(os.listdir('/app')), 'services': sorted(os.listdir('/app/services'))}))"
    )
    seen = json.loads(run("docker", "run", "--rm", "--entrypoint", "python", image, "-c", look))
    assert seen["uid"] == 10001
    assert seen["torch"] == (service in HEAVY)
    if service != "cli":
        assert seen["rooms"] == ["services", "shared"]
        assert seen["services"] == ["__init__.py", service]
    if service in LIGHT:
        grown = size_of(image) - size_of("python:3.11-slim-bookworm")
        assert grown <= 250 * MIB, f"{grown / MIB:.0f} MiB over its base"


def test_it_comes_up_with_no_file_to_edit(stack: ComposeStack) -> None:
    stack.up()
    until(stack.is_up, 120, every_s=0.5)
    ready = {each["name"]: each["ok"] for each in stack.get("/readyz")["dependencies"]}
    assert ready == {"database": True, "broker": True, "qdrant": True}
    until(lambda: {w["queue"] for w in stack.get("/workers")["workers"]} == {*QUEUES, "dispatcher"}, 90, every_s=0.5)
    assert "There is no run yet" in stack.ask("/").body
    published = run(
        "docker", "ps", "--filter", f"label=com.docker.compose.project={stack.project}", "--format", "{{.Ports}}"
    )
    assert re.findall(r"[\d.:]+(?=->)", published) == [f"127.0.0.1:{stack.port}"]


def test_a_run_that_nobody_disturbs(stack: ComposeStack, records: list[str]) -> None:
    assert "added" in stack.cli("corpus", "add", "docs", "/corpora/docs")
    assert stack.cli("run", "start", "--corpus", "docs", "--wait", *CONFIG).strip() == "docs-1"
    status = stack.get("/runs/docs-1")
    assert status["state"] == "done"
    assert status["conservation"]["holds"]
    assert status["records"] > PASSAGES
    records.append(exported(stack, "docs-1"))


def test_scaled_crashed_and_shrunk_in_mid_run_it_gives_the_same_records(
    stack: ComposeStack, records: list[str]
) -> None:
    assert stack.cli("run", "start", "--corpus", "docs", *CONFIG).strip() == "docs-2"

    def at_work(queue: str) -> int:
        alive = [w for w in stack.get("/workers")["workers"] if w["state"] == "alive"]
        return sum(w["queue"] == queue for w in alive)

    stack.scale(relabeler=3, generator=2)
    (retriever,) = stack.containers("retriever")
    stack.crash(retriever)
    until(lambda: at_work("relabeler") == 3 and at_work("generator") == 2, 90, every_s=0.5)
    until(lambda: stack.get("/runs/docs-2")["stages"][-1]["done"] > 0, 300, every_s=0.2)
    stack.crash(stack.containers("relabeler")[0])
    stack.scale(relabeler=1, generator=1)
    assert stack.get("/runs/docs-2")["state"] == "running", "it was over before it could be disturbed: more passages"
    until(lambda: stack.get("/runs/docs-2")["state"] == "done", 300, every_s=0.5)
    status = stack.get("/runs/docs-2")
    assert status["conservation"]["holds"]
    assert status["dead"] == []
    assert len(stack.containers("relabeler")) == 1
    restarts = run("docker", "inspect", "--format", "{{.RestartCount}}", retriever)
    assert int(restarts) == 1
    assert exported(stack, "docs-2") == records[0]


def exported(stack: ComposeStack, run_name: str) -> str:
    """Every record with its scores, in one order, without the name of its run."""
    stack.cli("export", run_name, "--format", "jsonl", "--output", f"/exports/{run_name}")
    (data,) = (stack.folder / "exports" / run_name).glob("*.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert rows
    return "\n".join(sorted(json.dumps({k: v for k, v in row.items() if k not in {"run", "run_id"}}) for row in rows))


def test_a_model_is_trained_and_measured_and_lies_in_the_mounted_folder(stack: ComposeStack) -> None:
    few = ("--per-device-train-batch-size", "8", "--passage-max-len", "48", "--matryoshka-dims", "128")
    stack.cli("train", "docs-1", "--output", "/models/docs-small", *few)
    model = stack.folder / "models" / "docs-small"
    assert {"modules.json", "README.md"} <= {file.name for file in model.iterdir()}
    compared = ("--baseline", "all-MiniLM-L6-v2", "--json")
    result = json.loads(stack.cli("evaluate", "/models/docs-small", "--beir", "/corpora/docs", *compared))
    assert 0.2 < result["dims"]["384"]["ndcg@10"] <= 1
    (training,) = stack.get("/runs/docs-1/training-runs")["training_runs"]
    assert training["state"] == "done"
    assert training["curve"]
    assert "docs-small" in stack.ask("/?run=docs-1").body


def test_acting_needs_the_token_that_the_log_showed_once(stack: ComposeStack) -> None:
    stack.cli("run", "start", "--corpus", "docs", "--set", "seed=7")
    assert stack.ask("/runs/docs-3/cancel", method="POST").status == 401
    (token,) = re.findall(r"shown this once: (\S+)", stack.compose("logs", "--no-color", "status"))
    assert stack.ask("/runs/docs-3/cancel", method="POST", token=token).status == 200
    assert stack.get("/runs/docs-3")["state"] == "cancelled"


def test_prometheus_would_be_answered_by_the_services_name(stack: ComposeStack) -> None:
    asking = "import urllib.request as r; print(r.urlopen('http://status:8765/metrics', timeout=10).read().decode())"
    metrics = stack.compose("exec", "-T", "dispatcher", "python", "-c", asking)
    assert 'fretwork_run_state{run="docs-1",state="done"} 1.0' in metrics


def test_down_leaves_nothing_behind(stack: ComposeStack) -> None:
    stack.compose("down", "--volumes", timeout_s=300)
    ours = ("--filter", f"label=com.docker.compose.project={stack.project}", "--quiet")
    assert run("docker", "ps", "--all", *ours) == ""
    assert run("docker", "volume", "ls", *ours) == ""
    assert run("docker", "network", "ls", *ours) == ""
