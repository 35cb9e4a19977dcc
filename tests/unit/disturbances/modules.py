"""Modules, paths, and what of the standard library is everybody's."""

import builtins
import copyreg
import csv
import datetime
import http.client
import json
import logging
import os
import shutil
import socket
import sqlite3
import ssl
import sys
import tempfile
import threading
import time
import types
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dagster_stack.pool.isolation import modules
from tests.unit.disturbances import disturbance

#: As user code sees them, which does not ask for types.
any_sys: Any = sys
any_json: Any = json
any_os: Any = os
any_socket: Any = socket
any_ssl: Any = ssl
any_threading: Any = threading
any_request: Any = urllib.request


@disturbance(
    "paths and arguments",
    lambda: [(id(found := getattr(sys, name)), list(found)) for name in modules.LISTS],
)
def change_paths(_: Path) -> None:
    sys.path.insert(0, "/nowhere")
    sys.argv = ["other"]
    sys.meta_path.clear()
    sys.path_hooks = []


@disturbance("modules", lambda: [sys.modules["json"], sys.modules["boto3"]])
def replace_modules(_: Path) -> None:
    import boto3  # noqa: F401

    sys.modules["json"] = types.ModuleType("json")
    del sys.modules["boto3"]


@disturbance(
    "functions and hooks", lambda: [time.time, time.sleep, builtins.open, socket.socket, datetime.datetime]
)
def replace_functions(_: Path) -> None:
    time.time = lambda: 0.0
    time.sleep = lambda _: None
    builtins.open = print  # type: ignore[assignment]
    socket.socket = object  # type: ignore[misc,assignment]
    datetime.datetime = object  # type: ignore[misc,assignment]


@disturbance(
    "functions and hooks",
    lambda: (hasattr(builtins, "_"), ssl._create_default_https_context, any_request._opener),
)
def do_without_certificates(_: Path) -> None:
    any_ssl._create_default_https_context = any_ssl._create_unverified_context
    urllib.request.install_opener(urllib.request.build_opener())
    builtins._ = str  # type: ignore[attr-defined]


@disturbance(
    "functions and hooks",
    lambda: (sys.excepthook, sys.unraisablehook, threading.excepthook, tempfile.tempdir),
)
def set_hooks(_: Path) -> None:
    any_sys.excepthook = any_sys.unraisablehook = any_threading.excepthook = lambda *_: None
    sys.tracebacklimit = 0
    tempfile.tempdir = "/nowhere"


@disturbance(
    "functions and hooks",
    lambda: (
        json.JSONEncoder.default,
        http.client.HTTPConnection.debuglevel,
        socket.socket.getsockopt,
        os.path.exists("/"),
        uuid.uuid4,
        sys.getsizeof,
    ),
)
def replace_methods(_: Path) -> None:
    any_json.JSONEncoder.default = lambda *_: None
    http.client.HTTPConnection.debuglevel = 1
    any_socket.socket.getsockopt = lambda *_: 0
    any_os.path.exists = lambda _: False
    uuid.uuid4 = lambda: uuid.UUID(int=0)
    any_sys.getsizeof = len


@disturbance(
    "registries",
    lambda: (
        list(csv.reader(["a,b"])),
        csv.list_dialects(),
        copyreg.dispatch_table.copy(),
        logging.getLevelName("INFO"),
        logging.getLevelName(5),
        shutil.get_archive_formats(),
        shutil.get_unpack_formats(),
        sqlite3.connect(":memory:").execute("SELECT ?", (datetime.date(2026, 1, 1),)).fetchone(),
        ElementTree.tostring(ElementTree.Element("{http://example.org}a")),
    ),
)
def register_much(_: Path) -> None:
    csv.register_dialect("excel", delimiter=";")
    csv.register_dialect("of a step")
    copyreg.pickle(threading.Event, str)
    logging.addLevelName(5, "TRACE")
    logging.addLevelName(logging.INFO, "information")
    shutil.register_archive_format("of a step", print, [])
    shutil.unregister_unpack_format("zip")
    sqlite3.register_adapter(datetime.date, lambda _: "never")
    ElementTree.register_namespace("mine", "http://example.org")
