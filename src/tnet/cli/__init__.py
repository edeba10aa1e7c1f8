"""The command line: one file per verb. Slow modules (torch) are imported in functions, so that ``--help`` is fast."""
