"""`python -m dagster_stack`: the command line without an installed script."""

import sys

from dagster_stack.cli import main

sys.exit(main())
