"""The command line: each command parses, calls a stage and prints its report.

Only this package prints or exits. Exit codes: 0 done, 1 a ``FeatxError`` or an output that cannot
be written, 2 wrong usage, 130 interrupted (143 by SIGTERM, 129 by SIGHUP), 141 where the reader of
a pipe has left. Anything else is a bug and shows its traceback.
"""

from featx.cli.main import main

__all__ = ["main"]
