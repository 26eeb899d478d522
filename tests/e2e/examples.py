"""The shell examples of a page: what to paste, and what it should print."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
HOWTO = ROOT / "docs" / "howto"
_FENCED = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SETTINGS = re.compile(r"^```env\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
_MARK = "=== end of example ==="


def pairs(page: Path = README) -> list[tuple[str, str]]:
    """Scripts, and the output that follows each; `…` in it stands for anything."""
    found = [(kind, text) for kind, text in _FENCED.findall(page.read_text())]
    assert [kind for kind, _ in found] == ["sh", "text"] * (len(found) // 2), page
    return list(zip([t for _, t in found[::2]], [t for _, t in found[1::2]], strict=True))


def settings(page: Path) -> dict[str, str]:
    """What the page asks `taskledger up` to be started with: the lines of its ```env blocks."""
    found: dict[str, str] = {}
    for block in _SETTINGS.findall(page.read_text()):
        for line in block.split():
            name, _, value = line.partition("=")
            found[name] = value
    return found


def links(page: Path) -> list[str]:
    """The files of ours that it points at, as they are written there."""
    return _LINK.findall(page.read_text())


def one_script(command_url: str, query_url: str, page: Path = README) -> str:
    """All of them in one shell, as a reader would; against APIs that listen elsewhere."""
    script = f"\necho '{_MARK}'\n".join(script for script, _ in pairs(page))
    return script.replace("http://127.0.0.1:8000", command_url).replace("http://127.0.0.1:8001", query_url)


def check(output: str, page: Path = README) -> None:
    """Holds what the script printed against the outputs."""
    printed = output.split(f"{_MARK}\n")
    wanted = [text for _, text in pairs(page)]
    assert len(printed) == len(wanted), output
    for (script, _), got, want in zip(pairs(page), printed, wanted, strict=True):
        pattern = ".*?".join(re.escape(part) for part in want.split("…"))
        assert re.fullmatch(pattern, got, re.DOTALL), f"{script}\nprinted:\n{got}\nnot:\n{want}"
