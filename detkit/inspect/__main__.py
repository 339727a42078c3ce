"""What ``python -m detkit.inspect`` runs."""

from detkit.inspect.program import main

if __name__ == "__main__":
    main()
