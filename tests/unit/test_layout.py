"""What keeps the repository in order: sizes, locks, and documents that must say what the code says."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

import events.task_state
from taskledger.settings import Settings

ROOT = Path(__file__).parents[2]
SHIPPED = ("events", "taskledger", "command_side", "projector", "query_side", "examples")
LONGEST_MODULE = 400
LOCKS = ("runtime", "dev", "image")
APPEND_LOCK = "7311461898370"
PINNED = re.compile(r"^([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==(\S+)", re.MULTILINE)


def pins(lock: str) -> dict[str, str]:
    return dict(PINNED.findall((ROOT / f"requirements/{lock}.lock").read_text()))


def test_no_module_has_grown_beyond_a_reader() -> None:
    modules = [path for folder in SHIPPED for path in (ROOT / folder).rglob("*.py")]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules}
    assert len(sizes) > 30
    assert {name: size for name, size in sizes.items() if size > LONGEST_MODULE} == {}


def test_the_documented_state_machine_is_the_one_in_force() -> None:
    table = [line for line in (events.task_state.__doc__ or "").splitlines() if line.startswith("|")]
    assert len(table) > 8
    assert "\n".join(table) in (ROOT / "docs/concepts.md").read_text()


def settings_of(section: type[BaseModel], prefix: str = "TASKLEDGER__") -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default of every setting."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{name.upper()}__")
        else:
            own = None if field.default_factory else field.default  # a factory's depends on the machine
            yield f"{prefix}{name.upper()}", kind, own


def test_the_example_names_every_setting_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^# (TASKLEDGER__[A-Z_]+)=(.*)$", text, re.MULTILINE))
    known = {name: (kind, default) for name, kind, default in settings_of(Settings)}
    assert shown.keys() == known.keys()
    for name, (kind, default) in known.items():
        if default is not None and default != {}:
            adapter = TypeAdapter[Any](kind)
            as_json = shown[name].startswith(("[", "{"))
            value = adapter.validate_json(shown[name]) if as_json else adapter.validate_python(shown[name])
            assert value == default, name


def test_the_configuration_reference_names_every_setting() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    assert set(re.findall(r"TASKLEDGER__[A-Z_]+", text)) >= {name for name, _, _ in settings_of(Settings)}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_by_hash_and_names_no_host(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.lock").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 20
    for entry in entries:
        assert PINNED.match(entry), entry
        assert "--hash=sha256:" in entry, entry


def test_locks_agree_and_cover_what_is_asked_for() -> None:
    runtime, dev, image = (pins(lock) for lock in LOCKS)
    assert runtime.items() <= dev.items()
    assert image.items() <= runtime.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["project"]["dependencies"]
    assert {bare(name) for name in asked} <= image.keys()
    asked = project["project"]["optional-dependencies"]["embedded"]
    assert {bare(name) for name in asked} <= runtime.keys()
    assert {bare(name) for name in project["dependency-groups"]["dev"]} <= dev.keys()


def bare(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower().replace("_", "-")


def test_each_advisory_lock_has_a_key_of_its_own() -> None:
    """Two locks with one key look like a hung process; they all share one database."""
    replaced = ROOT / "events/migrations/sql/0001_append.sql"
    assert "function taskledger.append_v1" in (replaced.parent / "0003_notice.sql").read_text()
    sources = [
        path
        for folder in SHIPPED
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".sql"} and path != replaced
    ]
    keys = [key for path in sources for key in re.findall(r"\b73114618983\d\d\b", path.read_text())]
    assert len(keys) >= 4
    keys.remove(APPEND_LOCK)  # an import keeps appends out
    assert len(keys) == len(set(keys)), sorted(keys)
