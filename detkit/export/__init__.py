"""Detectors for other runtimes: any detector as a program of plain operators, which needs nothing of this library.

``program`` exports a detector, ``plain`` makes any exported program plain. From there each runtime's own converter
takes over, in one to three lines: ``docs/runtimes.md`` shows them, and what came of every recipe.
"""

from detkit.export.programs import plain, program

__all__ = ["plain", "program"]
