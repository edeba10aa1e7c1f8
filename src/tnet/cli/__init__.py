"""The command line: one Typer application, one file per verb.

Modules import nothing slow at the top (no torch, Lightning or matplotlib), so that ``tnet --help`` is fast; verbs
import inside their functions.
"""
