"""`python -m taskledger` is `taskledger`."""

from taskledger.cli import main

main()
