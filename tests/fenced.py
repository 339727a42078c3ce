"""The fenced blocks of a Markdown page: what tests and tests/smoke.py run of README and docs."""

import doctest
import re
from pathlib import Path


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line number, code) of every fenced block of the language."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    own = [match for match in found if re.fullmatch(language, match.group(1))]
    return [(text.count("\n", 0, match.start()) + 2, match.group(2)) for match in own]


def run_python(text: str, name: str) -> int:
    """Run a page's Python in order in one namespace; how many blocks there were."""
    namespace: dict[str, object] = {"__name__": name}
    code = blocks(text, "python")
    for line, block in code:
        # Empty lines in front make a traceback name the page's own lines.
        exec(compile("\n" * (line - 1) + block, name, "exec"), namespace)
    return len(code)


def run_session(page: Path) -> None:
    """Run what a page shows at Python's prompt, in order; AssertionError where something else comes."""
    session = "\n".join(block for _, block in blocks(page.read_text(encoding="utf-8"), "pycon"))
    test = doctest.DocTestParser().get_doctest(session, {}, page.name, None, None)
    printed: list[str] = []
    ran = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=printed.append)
    assert ran.attempted, f"{page.name} shows no session"
    assert not ran.failed, "".join(printed)
