"""What ``python -m detkit.inspect`` runs."""

from detkit._command import run
from detkit.inspect.program import main

if __name__ == "__main__":
    run(main)
