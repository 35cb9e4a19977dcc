"""Packages made here, in a folder in place of an index: for resolvers and installers without a network."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

#: The backend of a package `mylib`, of one module: it needs nothing to be installed before.
LOCAL_BACKEND = """\
import pathlib, zipfile

def build_wheel(folder, *_):
    name = "mylib-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as archive:
        archive.writestr("mylib.py", "HERE = 1")
        archive.writestr("mylib-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: mylib\\nVersion: 1.0\\n")
        archive.writestr("mylib-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("mylib-1.0.dist-info/RECORD", "")
    return name

build_editable = build_wheel
"""


def no_network(folder: Path, index: Path) -> dict[str, str]:
    """uv's variables under which the packages of `index` are all that there are."""
    config = folder / "uv.toml"
    config.write_text(f'no-index = true\nfind-links = ["{index}"]\n', encoding="utf-8")
    return {"UV_CONFIG_FILE": str(config), "UV_CACHE_DIR": str(folder / "cache")}


def wheel(
    folder: Path, name: str, version: str, *requires: str, files: Mapping[str, str] | None = None
) -> Path:
    """A wheel of a module with the package's name; `requires` are its requirements."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    content = {
        f"{module}.py": f'VERSION = "{version}"\n',
        **(files or {}),
        f"{info}/METADATA": metadata(name, version, requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in content.items():
            archive.writestr(each, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{each},,\n" for each in [*content, f"{info}/RECORD"]))
    return path


def metadata(name: str, version: str, requires: tuple[str, ...] = ()) -> str:
    lines = [
        "Metadata-Version: 2.2",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    return "\n".join(lines) + "\n"


def source(folder: Path, name: str, version: str, backend: str) -> Path:
    """A source package whose build backend is the given code: it needs nothing to be installed before."""
    base = f"{name}-{version}"
    files = {
        "PKG-INFO": metadata(name, version),
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n',
        "backend.py": backend,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{base}.tar.gz", "w:gz") as archive:
        for each, text in files.items():
            entry = tarfile.TarInfo(f"{base}/{each}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return folder / f"{base}.tar.gz"
