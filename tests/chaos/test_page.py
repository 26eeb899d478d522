"""docs/faults.md says what the tests try, neither more nor less."""

from tests.chaos.page import HERE, PAGE, page


def test_the_page_is_made_of_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.chaos.page`"


def test_every_file_of_tests_is_on_the_page() -> None:
    text = page()
    for path in HERE.glob("test_matrix_*.py"):
        assert any(f"`{name}`" in text for name in _tests(path.read_text(encoding="utf-8"))), path.name


def _tests(source: str) -> list[str]:
    lines = [line.removeprefix("async ") for line in source.splitlines()]
    return [line[4:].partition("(")[0] for line in lines if line.startswith("def test_")]
