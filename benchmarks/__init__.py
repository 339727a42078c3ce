"""This library against a named peer: ``python -m benchmarks`` prints one table of ratios."""
