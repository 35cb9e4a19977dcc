"""Steps in processes of their own, and how they end."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

from dagster import OpExecutionContext, job, op

from dagster_stack import celery_executor

#: Set when the code is loaded, thus anew in each process.
state = {"value": "fresh"}
APART = {"dagster-stack/isolation": "process"}


@op(tags=APART, config_schema={"how": str})
def end(context: OpExecutionContext) -> int:
    """End in a way that the config says."""
    how = context.op_config["how"]
    context.add_output_metadata(
        {"pid": os.getpid(), "state": state["value"], "limit": resource.getrlimit(0)[1]}
    )
    state["value"] = "changed"
    if how == "by a signal":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "by a code":
        os._exit(7)
    elif how == "by exit":
        sys.exit(9)
    elif how == "by an error":
        raise ValueError("an error of this step")
    elif how == "by no end":
        Path(context.run.tags["test/file"]).write_text(str(os.getpid()))
        time.sleep(60)
    elif how == "with all closed":
        os.closerange(3, 1000)
    elif how == "with a file":
        Path(context.run.tags["test/file"]).touch()
    return os.getpid()


@job(executor_def=celery_executor)
def apart() -> None:
    end()


@op
def plain() -> int:
    return os.getpid()


@op(tags={"dagster-stack/isolation": "warm"})
def warm() -> int:
    return os.getpid()


@job(executor_def=celery_executor, tags=APART)
def all_apart() -> None:
    plain()
    warm()
