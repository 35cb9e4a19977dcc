"""An S3 store as `.env` describes one: the stack's own now, and one that somebody names to try it or to move there."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from scripts import dotenv, env_file, store_logins
from scripts.console import Failure

NAMES = (
    "S3_ENDPOINT_URL", "S3_PUBLIC_URL", "S3_BUCKET", "S3_PREFIX", "S3_REGION", "S3_ACCESS_KEY", "S3_SECRET_KEY",
    "S3_SESSION_TOKEN",
)  # fmt: skip
#: Names a file with these variables.
FILE = "TO"
#: What is as it comes where nobody says otherwise.
BUCKET, REGION, ACCESS_KEY = "dagster", "us-east-1", "dagster"
#: Those of a container that knows two stores, for the one that a move comes from.
SOURCE = "DAGSTER_STACK_FROM_"
#: A value that needs no quotes.
PLAIN = re.compile(r"[A-Za-z0-9_.:/@%+=-]*")

Store = dict[str, str]


def current() -> Store:
    """The one that `.env` names; call `named` first, as variables of the shell are another one's."""
    return completed(env_file.read(env_file.env_path()))


def named() -> Store | None:
    """The one that a file or variables name; None where nothing does. It leaves this process's environment.

    Raises Failure that says what is missing.
    """
    given = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    if file := os.environ.get(FILE):
        given = {**of_file(Path(file).expanduser()), **given}
    if not given:
        return None
    now = current()
    if "S3_ENDPOINT_URL" not in given:
        return completed({**now, **given})
    given = {"S3_PREFIX": now["S3_PREFIX"], "S3_BUCKET": now["S3_BUCKET"], **given}
    if not given["S3_ENDPOINT_URL"]:
        secret = given.get("S3_SECRET_KEY") or store_logins.secret()
        return completed({**given, "S3_SECRET_KEY": secret})
    if "S3_ACCESS_KEY" not in given or (given["S3_ACCESS_KEY"] and not given.get("S3_SECRET_KEY")):
        raise Failure(
            "S3_ACCESS_KEY and S3_SECRET_KEY of that store are missing; S3_ACCESS_KEY= without a value is the machine's role."
        )
    return completed(given)


def of_file(path: Path) -> Store:
    """Raises Failure where it can't be read, or says something else than it seems to."""
    try:
        text = env_file.text_of(path)
    except OSError as error:
        raise Failure(
            f"{FILE}={path} can't be read: {error.strerror}. It is a file with S3_ENDPOINT_URL=… and the other S3_* of"
            f" {env_file.EXAMPLE.name}; S3_ENDPOINT_URL= without a value is the stack's own MinIO."
        ) from error
    found = [each for each in dotenv.statements(text, os.environ) if each.name in NAMES or each.objection]
    for each in found:
        if each.objection:
            raise Failure(f"{FILE}={path}, {each.name or 'a line'}: {each.objection}")
    if "S3_ENDPOINT_URL" not in {each.name for each in found}:
        raise Failure(f"{FILE}={path} names no S3_ENDPOINT_URL. Without a value it is the stack's own MinIO.")
    return {each.name: each.value for each in found}


def completed(values: Mapping[str, str]) -> Store:
    """All of NAMES."""
    store = {name: values.get(name, "") for name in NAMES}
    store["S3_BUCKET"] = store["S3_BUCKET"] or BUCKET
    store["S3_REGION"] = store["S3_REGION"] or REGION
    if is_own(store):
        store["S3_ACCESS_KEY"] = store["S3_ACCESS_KEY"] or ACCESS_KEY
    return store


def is_own(store: Store) -> bool:
    """Whether it is the stack's own MinIO."""
    return not store["S3_ENDPOINT_URL"]


def is_same(one: Store, other: Store) -> bool:
    return place(one) == place(other)


def place(store: Store) -> tuple[str, str]:
    return store["S3_ENDPOINT_URL"].rstrip("/"), store["S3_BUCKET"]


def described(store: Store) -> str:
    where = store["S3_ENDPOINT_URL"] or "the stack's own MinIO"
    return f"s3://{store['S3_BUCKET']}/{store['S3_PREFIX'].strip('/')} at {where}"


def endpoint(store: Store) -> str:
    """As containers reach it."""
    return store["S3_ENDPOINT_URL"] or f"http{'s' if env_file.has_internal_tls() else ''}://minio:9000"


@contextmanager
def in_use(store: Store) -> Iterator[None]:
    """In here Compose takes this one for the stack's, whatever `.env` says."""
    before = dict(os.environ)
    os.environ.update(store)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def as_source(store: Store) -> Store:
    """The variables by which a container knows the store that a move comes from."""
    variables = {name: value for name, value in store.items() if name not in ("S3_PREFIX", "S3_PUBLIC_URL")}
    variables |= {"S3_ENDPOINT_URL": endpoint(store)}
    return {f"{SOURCE}{name}": value for name, value in variables.items()}


def file_of(store: Store) -> Path:
    """Where a store is described that the stack has left."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", urlsplit(store["S3_ENDPOINT_URL"]).netloc) or "minio"
    env = env_file.env_path()
    return env.with_name(f"{env.name}.s3.{host}.{store['S3_BUCKET']}")


def statements(store: Store) -> dict[str, str]:
    """Each value as a file of variables has it; raises Failure for one that none can hold."""
    return {name: quoted(name, value) for name, value in store.items()}


def quoted(name: str, value: str) -> str:
    ways = (value, "'" + value.replace("'", "\\'") + "'")
    for text in ways[PLAIN.fullmatch(value) is None :]:
        if [each.value for each in dotenv.statements(f"{name}={text}\n", {}) if not each.objection] == [
            value
        ]:
            return text
    raise Failure(f"{name} can't stand in a file of variables: choose another one at that store.")
