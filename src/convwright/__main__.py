"""Where ``convwright`` and ``python -m convwright`` begin: nothing is imported before Ctrl-C is understood."""

import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        from convwright import cli
    except KeyboardInterrupt:  # what else would say it in one line, and leave with 130, is not loaded yet
        print("convwright: interrupted", file=sys.stderr)
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
