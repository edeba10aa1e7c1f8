"""The command line: one Typer application, a verb a file.

Modules here import nothing slow at their top (no torch, no Lightning, no matplotlib), so that ``tnet --help`` answers
at once; what a verb needs is imported inside it.
"""
