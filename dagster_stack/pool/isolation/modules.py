"""Modules, where they are found, and what of the standard library's is everybody's: functions, hooks, registries.

What modules that the step loaded have added stays: they do so once, when they are loaded.
"""

import builtins
import datetime
import http.client
import json
import logging
import os
import posixpath
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Collection
from itertools import islice
from types import ModuleType
from typing import Any

from dagster_stack.errors import NotRestored

LISTS = ("path", "argv", "warnoptions", "meta_path", "path_hooks")
#: Whose attributes are put back.
STANDARD: tuple[Any, ...] = (
    builtins, datetime, http.client, json, logging, os, posixpath, random, shutil, signal, socket, ssl, subprocess, sys,
    tempfile, threading, time, urllib.request, uuid,
    json.JSONEncoder, json.JSONDecoder, http.client.HTTPConnection, http.client.HTTPSConnection, logging.Logger,
    logging.Handler, logging.Formatter, socket.socket, ssl.SSLContext, subprocess.Popen, threading.Thread,
)  # fmt: skip
#: Dictionaries that functions of the standard library fill, where their modules are loaded.
REGISTRIES = (
    ("_csv", "_dialects"),
    ("copyreg", "dispatch_table"),
    ("logging", "_levelToName"),
    ("logging", "_nameToLevel"),
    ("shutil", "_ARCHIVE_FORMATS"),
    ("shutil", "_UNPACK_FORMATS"),
    ("sqlite3", "adapters"),
    ("sqlite3", "converters"),
    ("xml.etree.ElementTree", "_namespace_map"),
)
_CONTENTS = [vars(each) for each in STANDARD]
MISSING = object()


def loaded_since(count: int) -> set[str]:
    """The modules that were loaded since there were so many."""
    return set(islice(sys.modules, count, None))


def is_of(value: Any, loaded: Collection[str]) -> bool:
    """Whether one of these modules made it, or it is a module."""
    return isinstance(value, ModuleType) or getattr(value, "__module__", None) in loaded


def lists() -> Any:
    return [(name, getattr(sys, name), list(getattr(sys, name))) for name in LISTS], len(sys.modules)


def restore_lists(saved: Any) -> None:
    before, count = saved
    for name, kept, content in before:
        now = getattr(sys, name)
        if now is kept and now == content:
            continue
        # Those that find what is in a module of their own, such as `six.moves`.
        loaded = loaded_since(count)
        finders = [each for each in now or () if each not in content and is_of(each, loaded)]
        setattr(sys, name, kept)
        kept[:] = (
            now
            if finders and [each for each in now if each not in finders] == content
            else [*content, *finders]
        )


def modules() -> dict[str, Any]:
    return sys.modules.copy()


def restore_modules(saved: dict[str, Any]) -> None:
    """New modules stay; replaced ones are put back, since others have imported the originals."""
    present = sys.modules
    # Without their names, which would be looked up one by one: 100 µs.
    if list(present.values()) == list(saved.values()):
        return
    for name, module in saved.items():
        if present.get(name, MISSING) is not module:
            present[name] = module


def attributes() -> Any:
    return [each.copy() for each in _CONTENTS], len(sys.modules)


def restore_attributes(saved: Any) -> None:
    contents, count = saved
    if contents == _CONTENTS:
        return
    loaded = loaded_since(count)
    replaced = []
    for owner, present, content in zip(STANDARD, _CONTENTS, contents, strict=True):
        for name in present.keys() | content.keys():
            now, before = present.get(name, MISSING), content.get(name, MISSING)
            if before is MISSING:
                if not is_of(now, loaded):
                    delattr(owner, name)
            elif now is not before:
                setattr(owner, name, before)
                replaced += [f"{owner.__name__}.{name}"] if callable(before) and owner is not sys else []
    # A module that was loaded meanwhile may have kept the replaced function.
    if replaced and loaded:
        raise NotRestored(f"functions that were replaced, such as {replaced[0]}")


def registries() -> Any:
    found = []
    for module, name in REGISTRIES:
        if module in sys.modules:
            registry = getattr(sys.modules[module], name, {})
            found.append((registry, registry.copy()))
    return found, len(sys.modules)


def restore_registries(saved: Any) -> None:
    found, count = saved
    for registry, content in found:
        if list(registry.values()) == list(content.values()):
            continue
        if len(sys.modules) == count:
            registry.clear()
        registry.update(content)
