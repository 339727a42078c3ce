"""How a command ends: one line for an error that tells its repair, a traceback for any other."""

import sys
import traceback
from collections.abc import Callable


def run(main: Callable[[], object]) -> None:
    """Call ``main``, what ``python -m ...`` runs, and exit with 1 and one line for errors of this library.

    These are a ValueError, TypeError, ImportError or FloatingPointError that it raises itself, and any OSError, which
    names its file. What a library below or the user's own module raises keeps its traceback, and so does all with
    ``python -X dev``.
    """
    try:
        main()
    except (ValueError, TypeError, ImportError, FloatingPointError, OSError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        told = isinstance(error, OSError) or frame.f_globals.get("__name__", "").startswith("detkit.")
        if sys.flags.dev_mode or not told:
            raise
        sys.exit(f"error: {error}")
