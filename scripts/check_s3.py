"""`make check-s3`: whether an S3 store does all that the stack uses, tried with the image's own boto3."""

from contextlib import nullcontext

from scripts import certificates, compose, env_file, proxies, run, s3_store
from scripts.console import main


def check() -> None:
    """Check the store that TO or S3_* variables name, else the one in `.env`; the command line prints what it finds."""
    compose.require_env_file()
    env_file.require_clear()
    named = s3_store.named()
    certificates.record()
    proxies.record()
    with s3_store.in_use(named) if named else nullcontext():
        run.command_line("check-s3")


if __name__ == "__main__":
    main(check)
