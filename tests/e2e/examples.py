"""The shell examples of README.md: what to paste, and what it should print."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
_FENCED = re.compile(r"^```(sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "=== end of example ==="


def pairs() -> list[tuple[str, str]]:
    """Scripts, and the output that follows each; `…` in it stands for anything."""
    found = [(kind, text) for kind, text in _FENCED.findall(README.read_text())]
    assert [kind for kind, _ in found] == ["sh", "text"] * (len(found) // 2)
    return list(zip([t for _, t in found[::2]], [t for _, t in found[1::2]], strict=True))


def one_script(command_url: str, query_url: str) -> str:
    """All of them in one shell, as a reader would; against APIs that listen elsewhere."""
    script = f"\necho '{_MARK}'\n".join(script for script, _ in pairs())
    return script.replace("http://127.0.0.1:8000", command_url).replace("http://127.0.0.1:8001", query_url)


def check(output: str) -> None:
    """Holds what the script printed against the outputs."""
    printed = output.split(f"{_MARK}\n")
    wanted = [text for _, text in pairs()]
    assert len(printed) == len(wanted), output
    for (script, _), got, want in zip(pairs(), printed, wanted, strict=True):
        pattern = ".*?".join(re.escape(part) for part in want.split("…"))
        assert re.fullmatch(pattern, got, re.DOTALL), f"{script}\nprinted:\n{got}\nnot:\n{want}"
