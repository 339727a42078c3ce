"""What ``python -m detkit.evaluate`` runs."""

from detkit._command import run
from detkit.evaluate.program import main

if __name__ == "__main__":
    run(main)
