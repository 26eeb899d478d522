"""The how-to pages say what is true: their examples are run as they stand, against one running service."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e import examples
from tests.e2e.running import Up, shell, up

INDEX = examples.HOWTO / "README.md"
PAGES = sorted(set(examples.HOWTO.glob("*.md")) - {INDEX})

pytestmark = [pytest.mark.xdist_group("howto"), pytest.mark.timeout(180)]


MASTER_KEY = "TASKLEDGER__ENCRYPTION__MASTER_KEY_FILE"
ENCRYPTED = [page for page in PAGES if MASTER_KEY in examples.settings(page)]
CLEAR = [page for page in PAGES if page not in ENCRYPTED]
"""What is encrypted shows elsewhere that it is, so those pages have a service of their own."""


def _wanted(pages: Sequence[Path]) -> dict[str, str]:
    """Of all these pages, as one service runs for them all."""
    wanted: dict[str, str] = {}
    for page in pages:
        for name, value in examples.settings(page).items():
            assert wanted.setdefault(name, value) == value, (
                f"{page.name}: another page wants another {name}"
            )
    return wanted


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, dict[str, str]]]:
    yield from _running(tmp_path_factory.mktemp("howto"), CLEAR)


@pytest.fixture(scope="module")
def encrypting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, dict[str, str]]]:
    yield from _running(tmp_path_factory.mktemp("howto"), ENCRYPTED)


def _running(folder: Path, pages: Sequence[Path]) -> Iterator[tuple[Up, dict[str, str]]]:
    """The service, and the environment in which its command line finds it."""
    tools = folder / "bin"
    tools.mkdir()
    command = tools / "taskledger"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m taskledger "$@"\n')
    command.chmod(0o755)
    data = {"TASKLEDGER__DATA_DIR": str(folder / ".taskledger"), **_wanted(pages)}
    if MASTER_KEY in data:
        data[MASTER_KEY] = str(folder / data[MASTER_KEY])
        subprocess.run([command, "keys", "new", data[MASTER_KEY]], check=True, timeout=30)
    with up(folder, **data) as process:
        yield process, {**data, "PATH": f"{tools}:{os.environ['PATH']}"}


@pytest.mark.parametrize("page", CLEAR, ids=lambda page: page.stem)
def test_every_example_prints_what_it_says(
    page: Path, running: tuple[Up, dict[str, str]], tmp_path: Path
) -> None:
    _check(page, *running, tmp_path)


@pytest.mark.parametrize("page", ENCRYPTED, ids=lambda page: page.stem)
def test_every_example_prints_what_it_says_where_text_is_encrypted(
    page: Path, encrypting: tuple[Up, dict[str, str]], tmp_path: Path
) -> None:
    _check(page, *encrypting, tmp_path)


def _check(page: Path, process: Up, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(examples.ROOT / "examples")  # as beside a checkout
    script = examples.one_script(*process.urls, page)
    examples.check(shell(script, folder=tmp_path, within=120, **environment), page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_it_has_examples_is_short_and_is_in_the_index(page: Path) -> None:
    assert examples.pairs(page)
    assert len(page.read_text().splitlines()) <= 80
    entries = [line for line in INDEX.read_text().splitlines() if f"]({page.name})" in line]
    assert len(entries) == 1, f"one line for {page.name}"


def test_every_file_that_is_linked_is_there() -> None:
    for page in (INDEX, *PAGES):
        for target in examples.links(page):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
