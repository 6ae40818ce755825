"""The form of the Docker files: who runs what, what an image holds, what leaves the machine; and names are real."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.stack import children
from cli.stack.state import Addresses
from shared.settings import LLMSettings, Settings
from shared.stages import QUEUES, ROUTES

ROOT = Path(__file__).parents[2]
SERVICES = (*QUEUES, "dispatcher", "status")
BUILT = {
    **{service: ROOT / "services" / service / "Dockerfile" for service in SERVICES},
    "cli": ROOT / "cli" / "Dockerfile",
    "flower": ROOT / "monitoring" / "flower" / "Dockerfile",
}
ONCE = ("migrate", "folders", "cli")
TORCH = {"torch", "transformers", "sentence-transformers", "accelerate"}
COMPOSE = ROOT / "docker-compose.yml"
CPU = ROOT / "docker-compose.cpu.yml"
CONFIGURED: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*")


def dockerfile(service: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, in order."""
    lines = BUILT[service].read_text().replace("\\\n", "").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [(name, arguments) for name, arguments in pairs]


def command(service: str) -> list[str]:
    """What the service's container runs: compose's command, or the image's."""
    given = CONFIGURED[service].get("command")
    return list(given or json.loads(dict(dockerfile(service))["CMD"]))


def requirements(extras: set[str]) -> set[str]:
    """The names of the packages that the project asks for with these extras."""
    optional = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    return {re.split(r"[\[<>=;\s]", line, maxsplit=1)[0] for line in asked}


@pytest.mark.parametrize("queue", QUEUES)
def test_each_queue_has_a_worker_started_as_on_one_machine(queue: str, tmp_path: Path) -> None:
    embedded = children.worker(tmp_path, Addresses(database_url=""), queue, children.WORKERS[queue]).command
    assert command(queue) == ["python", *embedded[1:]]
    assert command(queue)[command(queue).index("--queues") + 1] == queue


@pytest.mark.parametrize(("queue", "on_one_core"), [("retriever", True), ("trainer", False)])
def test_the_trainer_alone_tokenizes_on_all_cores(
    queue: str, on_one_core: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    embedded = children.worker(tmp_path, Addresses(database_url=""), queue, children.WORKERS[queue]).env
    image = " ".join(arguments for name, arguments in dockerfile(queue) if name == "ENV").split()
    assert ("TOKENIZERS_PARALLELISM=false" in image) == on_one_core
    assert embedded.get("TOKENIZERS_PARALLELISM") == ("false" if on_one_core else None)


@pytest.mark.parametrize("service", ["dispatcher", "status"])
def test_the_other_services_start_as_on_one_machine(service: str, tmp_path: Path) -> None:
    addresses = Addresses(database_url="", status_url="")
    specs = [children.dispatcher(tmp_path, addresses), children.status(tmp_path, addresses, 8765)]
    (embedded,) = (spec.command for spec in specs if spec.name == service)
    assert command(service) == ["python", *embedded[1:]]


def test_the_schema_is_upgraded_once_before_any_service_starts() -> None:
    assert command("migrate") == ["python", "-m", "shared.migrate"]
    assert CONFIGURED["migrate"]["restart"] == "no"
    for service in SERVICES:
        assert CONFIGURED[service]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_holds_shared_and_its_own_service_only(service: str) -> None:
    copied = [arguments for name, arguments in dockerfile(service) if name in ("COPY", "ADD")]
    assert copied == [
        "pyproject.toml requirements.lock ./",
        "--from=build /opt/venv /opt/venv",
        "shared shared",
        "services/__init__.py services/__init__.py",
        f"services/{service} services/{service}",
    ]


def test_the_command_line_has_the_services_code_and_its_own_entry() -> None:
    copied = [arguments for name, arguments in dockerfile("cli") if name == "COPY"]
    assert copied[2:] == ["shared shared", "services services", "cli cli"]
    assert json.loads(dict(dockerfile("cli"))["ENTRYPOINT"]) == ["fretwork"]
    assert PROJECT["scripts"] == {"fretwork": "cli.main:main"}
    assert CONFIGURED["cli"]["profiles"] == ["cli"], "`up` starts no command line"


@pytest.mark.parametrize("service", [*SERVICES, "cli"])
def test_an_image_installs_the_locked_versions_and_torch_only_where_it_is_used(service: str) -> None:
    (install,) = (arguments for _, arguments in dockerfile(service) if "pip install" in arguments)
    assert "--constraint constraints.txt" in install
    named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", install.split()[-1].strip("'"))
    assert named is not None
    extras = set((named[1] or "").split(",")) - {""}
    assert (service in extras) == (service in PROJECT["optional-dependencies"])
    assert bool(requirements(extras) & TORCH) == (service in ("retriever", "trainer"))


@pytest.mark.parametrize("service", [*SERVICES, "cli"])
def test_a_dockerfile_is_multi_stage_unprivileged_and_for_either_builder(service: str) -> None:
    instructions = dockerfile(service)
    names = [name for name, _ in instructions]
    assert [arguments for name, arguments in instructions if name == "FROM"] == [
        "python:3.11-slim-bookworm AS build",
        "python:3.11-slim-bookworm",
    ]
    assert dict(instructions)["USER"] == "fretwork"
    assert names[-1] == "CMD"
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])
    assert not re.search(r"--mount|--chmod|--link|^# *syntax|<<", BUILT[service].read_text(), re.MULTILINE)


def test_nothing_but_the_status_api_is_published_and_that_on_loopback() -> None:
    published = {name: service["ports"] for name, service in CONFIGURED.items() if "ports" in service}
    always = {name: ports for name, ports in published.items() if "profiles" not in CONFIGURED[name]}
    assert always == {"status": ["127.0.0.1:${FRETWORK_STATUS_PORT:-8765}:8765"]}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert all(service.get("network_mode", "none") == "none" for service in CONFIGURED.values())
    assert not any("privileged" in service for service in CONFIGURED.values())


def test_versions_are_pinned_and_our_images_have_the_projects() -> None:
    for name, service in CONFIGURED.items():
        assert PINNED.fullmatch(service["image"]), name
        if "build" in service:
            built = "dispatcher" if name in ("migrate", "folders") else name
            assert ROOT / service["build"]["dockerfile"] == BUILT[built]
            assert service["image"] == f"fretwork/{built}:{PROJECT['version']}"


def test_the_qdrant_server_is_one_that_its_client_speaks_to() -> None:
    (client,) = (line for line in PROJECT["optional-dependencies"]["retriever"] if line.startswith("qdrant-client"))
    wanted = re.search(r">=(\d+)\.(\d+)", client)
    served = re.search(r":v(\d+)\.(\d+)", CONFIGURED["qdrant"]["image"])
    assert wanted is not None
    assert served is not None
    assert served[1] == wanted[1]
    assert abs(int(served[2]) - int(wanted[2])) <= 1


def test_commands_are_in_exec_form_and_what_is_waited_for_says_when_it_is_healthy() -> None:
    for name, service in CONFIGURED.items():
        assert isinstance(service.get("command", []), list), name
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
        assert "mem_limit" in service
        if "healthcheck" in service:
            assert service["healthcheck"]["test"][0] == "CMD"
        if name not in ONCE:
            assert "stop_grace_period" in service
        for other, how in service.get("depends_on", {}).items():
            assert ("healthcheck" in CONFIGURED[other]) == (how["condition"] == "service_healthy")
    assert {name for name, service in CONFIGURED.items() if "healthcheck" in service} == {
        *("postgres", "redis", "qdrant", "vllm", "status"),
    }


def test_a_worker_has_the_time_to_finish_its_longest_shard() -> None:
    for queue in set(QUEUES) - {"trainer"}:  # a training goes on from its last checkpoint
        longest_s = max(route.max_shard_s for route in ROUTES.values() if route.queue == queue)
        assert 60 * int(CONFIGURED[queue]["stop_grace_period"].removesuffix("m")) > longest_s


def test_redis_keeps_what_it_was_told() -> None:
    options = " ".join(command("redis"))
    assert "--appendonly yes" in options
    assert "--maxmemory-policy noeviction" in options
    assert "redis:/data" in CONFIGURED["redis"]["volumes"]


def test_every_fretwork_variable_is_a_setting() -> None:
    known = {f"FRETWORK_{name.upper()}" for name in Settings.model_fields}
    known |= {f"FRETWORK_LLM__{name.upper()}" for name in LLMSettings.model_fields}
    for path in [COMPOSE, CPU, ROOT / ".env.example", *BUILT.values()]:
        assert set(re.findall(r"FRETWORK_[A-Z0-9_]+", path.read_text())) <= known, path


def test_the_example_environment_names_every_variable_with_its_default() -> None:
    text = COMPOSE.read_text()
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert text.count("${") == len(re.findall(r"\$\{\w+:-[^}]+\}", text)), "a variable without a default"
    documented = dict(re.findall(r"^#(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert documented == {
        **defaults,
        "FRETWORK_STATUS_TOKEN": "",
        **dict.fromkeys(("HF_TOKEN", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"), ""),
        **dict.fromkeys((f"FRETWORK_LLM__{name}" for name in ("MODEL", "API_KEY")), ""),
        **dict.fromkeys((f"FRETWORK_LLM__MAX_{name}_PER_MINUTE" for name in ("REQUESTS", "TOKENS")), ""),
        "COMPOSE_FILE": f"{COMPOSE.name}:{CPU.name}",
    }


@pytest.mark.parametrize("service", [*SERVICES, "cli"])
def test_who_asks_an_llm_is_told_where_it_is(service: str) -> None:
    asks = any((ROOT / "services" / service).glob("prompted.py")) or service == "cli"  # it looks at the teacher
    told = {name for name in CONFIGURED[service]["environment"] if name.startswith("FRETWORK_LLM__")}
    if service == "status":  # /readyz asks whether it is there
        assert told == {"FRETWORK_LLM__BASE_URL"}
        return
    assert told == ({f"FRETWORK_LLM__{name.upper()}" for name in LLMSettings.model_fields} if asks else set())
    (install,) = (arguments for _, arguments in dockerfile(service) if "pip install" in arguments)
    assert bool(re.search(r"\bllm\b", install)) == asks


def test_without_a_gpu_nothing_asks_for_one() -> None:
    overlay = yaml.safe_load(CPU.read_text())["services"]
    on_gpu = {name for name, service in CONFIGURED.items() if service.get("runtime") == "nvidia"}
    assert on_gpu == {"vllm", "trainer"}
    told = {name for name in CONFIGURED if "FRETWORK_LLM__BASE_URL" in CONFIGURED[name].get("environment", {})}
    elsewhere = {"environment": {"FRETWORK_LLM__BASE_URL": "${FRETWORK_LLM__BASE_URL:-}"}}
    assert overlay == {
        "vllm": {"profiles": ["gpu"]},
        "trainer": {"runtime": "runc"},
        **dict.fromkeys(told, elsewhere),
    }
    assert LLMSettings(base_url="").is_configured is False
    assert not any("vllm" in service.get("depends_on", {}) for service in CONFIGURED.values())


@pytest.mark.parametrize("files", [(COMPOSE,), (COMPOSE, CPU)], ids=["gpu", "cpu"])
def test_compose_takes_the_files(files: tuple[Path, ...]) -> None:
    named = [part for path in files for part in ("-f", str(path))]
    checked = subprocess.run([*_compose(), *named, "config", "--quiet"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def _compose() -> list[str]:
    for program in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(program[0]) and subprocess.run([*program, "version"], capture_output=True).returncode == 0:
            return program
    pytest.skip("neither docker compose nor docker-compose is installed here")
