"""The how-to pages say what is true: their examples are run as they stand, against one running service."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import examples
from tests.e2e.running import Up, shell, up

INDEX = examples.HOWTO / "README.md"
PAGES = sorted(set(examples.HOWTO.glob("*.md")) - {INDEX})

pytestmark = [pytest.mark.xdist_group("howto"), pytest.mark.timeout(180)]


def _wanted() -> dict[str, str]:
    """Of all pages, as one service runs for them all."""
    wanted: dict[str, str] = {}
    for page in PAGES:
        for name, value in examples.settings(page).items():
            assert wanted.setdefault(name, value) == value, (
                f"{page.name}: another page wants another {name}"
            )
    return wanted


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, dict[str, str]]]:
    """The service, and the environment in which its command line finds it."""
    folder = tmp_path_factory.mktemp("howto")
    tools = folder / "bin"
    tools.mkdir()
    command = tools / "taskledger"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m taskledger "$@"\n')
    command.chmod(0o755)
    data = {"TASKLEDGER__DATA_DIR": str(folder / ".taskledger"), **_wanted()}
    with up(folder, **data) as process:
        yield process, {**data, "PATH": f"{tools}:{os.environ['PATH']}"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_prints_what_it_says(
    page: Path, running: tuple[Up, dict[str, str]], tmp_path: Path
) -> None:
    process, environment = running
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
