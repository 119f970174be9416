"""`python -m app` is the command `central-logger`."""

from app.cli import main

main()
