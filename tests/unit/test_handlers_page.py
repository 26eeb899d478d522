"""docs/handlers.md: its modules load and run as they stand."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest

from command_side.worker.outcomes import Completed
from command_side.worker.perform import perform
from taskledger import TaskContext
from taskledger.registry import Kind, load_registry

PAGE = Path(__file__).parents[2] / "docs" / "handlers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
MODULE = "shop_of_the_handlers_page"


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """Where the page's code goes."""
    made = ModuleType(MODULE)
    sys.modules[MODULE] = made
    yield made
    del sys.modules[MODULE]


def kind_in(module: ModuleType, *blocks: str) -> Kind:
    for block in blocks:
        exec(block, vars(module))
    return next(iter(load_registry([MODULE]).kinds.values()))


async def test_ten_lines_are_enough(module: ModuleType) -> None:
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 10
    kind = kind_in(module, BLOCKS[0])
    outcome = await perform(kind, {"item": "tea", "count": 2}, TaskContext(uuid4(), 1))
    assert isinstance(outcome, Completed)
    assert outcome.result == "2 × tea"


def test_the_steering_example_passes_its_own_test(module: ModuleType) -> None:
    kind = kind_in(module, *BLOCKS[1:])
    assert kind.execution == "thread"
    vars(module)["test_deliver"]()
