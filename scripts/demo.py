"""`make demo`: the stack, and a year of flights through it; without an engine the same in embedded mode."""

from scripts import dev, run, turns
from scripts.console import main, say, warn
from scripts.engine import NoEngine
from scripts.up import up


def demo() -> int:
    try:
        turns.alone(up)()
    except NoEngine as reason:
        warn(str(reason))
        say("\nRunning the flights in the embedded mode: a worker of its own on this machine, no service")
        return dev.demo()
    say("\nRunning the job `flights`: 336,776 flights, twelve months in parallel")
    run.command_line("demo")


if __name__ == "__main__":
    main(demo)
