"""``python -m tnet``: the command line of the interpreter that runs it."""

from tnet.cli.main import main

main()
