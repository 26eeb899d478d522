"""docker-compose.yml and Dockerfile, read as Docker would read them: no engine runs here. That the commands
in them work is test_processes' part."""

import re
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from taskledger.cli import SIDES
from taskledger.settings import Settings
from tests.e2e.running import shell

ROOT = Path(__file__).parents[2]
SERVERS = {"postgres", "redis"}
PROCESSES = {"migrate", *SIDES}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()

every = pytest.mark.parametrize("name", sorted(SERVERS | PROCESSES))
each_process = pytest.mark.parametrize("name", sorted(PROCESSES))


def test_there_is_a_service_for_each_process_and_server() -> None:
    assert SERVICES.keys() == SERVERS | PROCESSES


@every
def test_a_service_is_pinned_and_confined(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"])
    assert service["user"] not in {"root", "0", "0:0"}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@every
def test_a_service_tells_whether_it_is_well(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check == {"disable": True} if name == "migrate" else check["test"][0] in {"CMD", "CMD-SHELL"}


@each_process
def test_a_process_waits_for_what_it_needs(name: str) -> None:
    wanted = {
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }
    first = {"postgres": {"condition": "service_healthy"}}
    assert SERVICES[name]["depends_on"] == (first if name == "migrate" else wanted)


@each_process
def test_a_process_is_one_command_of_the_cli_from_the_one_image(name: str) -> None:
    assert SERVICES[name]["command"] == [name]
    assert SERVICES[name]["image"] == f"taskledger:{PROJECT['project']['version']}"
    assert 'ENTRYPOINT ["taskledger"]' in DOCKERFILE
    assert SERVICES[name]["user"] == "10001:10001"
    assert "USER 10001:10001" in DOCKERFILE


@each_process
def test_a_process_has_only_settings_that_exist(name: str) -> None:
    for setting in SERVICES[name]["environment"]:
        section, _, field = setting.removeprefix("TASKLEDGER__").lower().partition("__")
        assert field in type(getattr(Settings(), section)).model_fields


def test_a_process_is_asked_where_it_listens() -> None:
    for name, service in SERVICES.items():
        if name in PROCESSES - {"migrate"}:
            port = {"command-api": 8000, "query-api": 8001}.get(name, 8002)
            assert f"http://127.0.0.1:{port}/health/" in service["healthcheck"]["test"][-1]
    assert "TASKLEDGER__HEALTH__PORT=8002" in DOCKERFILE


def test_no_secret_is_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"password[ \t]*[:=][ \t]*[^\s/$#]", text, re.IGNORECASE)
    assert not re.search(r"://[^@/\s]*:[^@/\s]*@", text)
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())
    assert "secrets/" in (ROOT / ".gitignore").read_text()


def test_the_image_is_pinned_locked_and_unprivileged() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base) for base in bases)
    assert "--require-hashes -r requirements/image.lock" in DOCKERFILE
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE
    assert "HEALTHCHECK" in DOCKERFILE


def test_the_image_gets_every_package_and_the_build_may_see_it() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = set(re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE))
    sources = {source for line in copied for source in line.split()}
    packages = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages <= sources
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_the_wheel_holds_every_file_that_is_read_at_run_time(tmp_path: Path) -> None:
    build = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
    shell(f"cd '{ROOT}' && '{sys.executable}' -c '{build}' '{tmp_path}'", folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        files = [path for path in (ROOT / package).rglob("*") if path.is_file()]
        wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
        assert wanted <= held
