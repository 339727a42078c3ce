"""The fenced blocks of a Markdown page: what tests and tests/smoke.py run of README and docs."""

import re


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
