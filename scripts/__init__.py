"""What the Makefile's targets do on the host. Standard library only: it runs before anything is installed."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the check must run on the old Python that it names
    sys.exit(
        "Python 3.11 or later is needed, found " + sys.version.split()[0] + ". Install one and name it:"
        " make PYTHON=/path/to/python3 …"
    )
