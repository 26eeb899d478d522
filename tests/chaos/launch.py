"""`python -P -m tests.chaos.launch <command>`: the real process, with failpoints and, if so, a planted bug.

Both are wrapped around named functions before the command begins. Children that a worker forks inherit
neither: what they do is a handler's, not ours.
"""

import os
import sys

from taskledger import cli
from taskledger.lifecycle import follow_supervisor
from tests.chaos import failpoints, plants


def main() -> None:
    follow_supervisor()  # first of all: importing the rest takes a second
    command = sys.argv[1]
    failpoints.install(command)
    plants.install(os.environ.get(plants.PLANT), command)
    cli.main()


if __name__ == "__main__":
    main()
