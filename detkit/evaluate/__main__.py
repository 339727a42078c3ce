"""What ``python -m detkit.evaluate`` runs."""

from detkit.evaluate.program import main

if __name__ == "__main__":
    main()
