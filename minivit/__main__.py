"""The command `minivit`, also as python -m minivit."""

import sys

from minivit.process import begin_program


def main(argv: list[str] | None = None, command: str = "minivit") -> int:
    """See cli.main. Torch takes seconds to import: Ctrl-C is quiet then, too."""
    if argv is None:
        begin_program()
    from minivit import cli

    return cli.main(argv, command)


if __name__ == "__main__":
    sys.exit(main())
