"""`make down`: all containers of the stack go, on further hosts too, once no other command changes them; data stays."""

from scripts import compose, turns
from scripts.console import main
from scripts.hosts import services

DOWN = ("--profile", "*", "down", "--remove-orphans")


def down() -> None:
    compose.require_env_file()
    turns.keep_for_successor("make down")
    services.stop_all()
    compose.become(*DOWN)


if __name__ == "__main__":
    main(down)
