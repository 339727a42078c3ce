"""What ``python -m detkit.train`` runs."""

from detkit.train.program import main

if __name__ == "__main__":
    main()
