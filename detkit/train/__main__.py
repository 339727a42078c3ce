"""What ``python -m detkit.train`` runs."""

from detkit._command import run
from detkit.train.program import main

if __name__ == "__main__":
    run(main)
