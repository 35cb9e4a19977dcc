"""`make down`: all containers of the stack go, once no other command changes them; data stays."""

from scripts import compose, turns
from scripts.console import main

DOWN = ("--profile", "*", "down", "--remove-orphans")


def down() -> None:
    compose.require_env_file()
    turns.keep_for_successor("make down")
    compose.become(*DOWN)


if __name__ == "__main__":
    main(down)
