"""docs/faults.md, made of the docstrings of the tests here: `python -m tests.chaos.page` writes it anew.

A docstring begins with `what breaks -> what happens`. So the page cannot promise what nothing tries.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parent.parent / "docs" / "faults.md"
ARROW: Final = " -> "
_TITLES: Final = {
    "api": "The APIs",
    "worker": "Workers",
    "relay": "The dispatcher",
    "projector": "The projector",
    "rebuild": "Rebuilds",
    "sealer": "The sealer",
    "query": "Reads",
    "webhooks": "Webhooks",
    "postgres": "PostgreSQL",
    "redis": "Redis",
    "clock": "Clocks",
    "stack": "Everything at once",
}
_HEAD: Final = """# What breaks, and what happens then

Each line has a test that breaks it, on real servers; its name is the last column. Those with a * take
long and run by `make test-faults`, the others by `make test`. Beside them, faults of every kind strike
a whole service under load: `make chaos`.
"""


class Fault(NamedTuple):
    breaks: str
    happens: str
    test: str
    is_long: bool


def page() -> str:
    parts = [_HEAD]
    for component, title in _TITLES.items():
        rows = [
            f"| {fault.breaks} | {fault.happens} | `{fault.test}`{' *' * fault.is_long} |"
            for fault in faults(component)
        ]
        head = [f"## {title}\n", "| what breaks | what happens | test |", "|---|---|---|"]
        parts.append("\n".join([*head, *rows, ""]))
    return "\n".join(parts)


def faults(component: str) -> Iterator[Fault]:
    """Raises ValueError for a test whose docstring does not say what breaks and what happens."""
    for path in sorted(HERE.glob(f"test_matrix_{component}*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        whole = any(_is_long(statement) for statement in module.body if isinstance(statement, ast.Assign))
        for test in module.body:
            if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not test.name.startswith("test_"):
                continue
            breaks, arrow, happens = _summary(test).partition(ARROW)
            if not arrow:
                raise ValueError(f"{path.name}: {test.name} does not say what breaks and what happens")
            long = whole or any(_is_long(decorator) for decorator in test.decorator_list)
            yield Fault(_capitalised(breaks), _capitalised(happens), test.name, long)


def _summary(test: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    first = (ast.get_docstring(test) or "").partition("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|").removesuffix(".")


def _is_long(node: ast.AST) -> bool:
    return "mark.faults" in ast.unparse(node)


def write() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    write()
