"""``python -m featx`` is the command ``featx``."""

from featx.cli import main

main()
