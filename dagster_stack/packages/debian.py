"""`packages.txt`: the Debian packages of a project, one a line, as Astronomer and Binder have it."""

import re
from pathlib import Path

from dagster_stack.packages.errors import Refused

FILE = "packages.txt"
#: A name of Debian's, with an architecture or a version where one is asked for. apt would remove what ends in a minus.
NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+](?::[a-z0-9-]+)?(?:=[A-Za-z0-9.+~:-]+)?")
#: What must be there while Python packages are compiled: those that end in -dev, and these.
TOOLS = {"autoconf", "automake", "build-essential", "cargo", "clang", "cmake", "cython3", "g++", "gcc", "gfortran", "git",
         "libtool", "make", "meson", "ninja-build", "pkg-config", "pkgconf", "rustc", "swig"}  # fmt: skip
#: What a compiler needs for every Python package.
HEADERS = "python3-dev"


def names(folder: Path) -> list[str]:
    """The packages that a folder's file names; comments and blank lines are left out. Raises Refused for a bad name."""
    file = folder / FILE
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if not NAME.fullmatch(text):
            raise Refused(f"{FILE}, line {number}: {text!r} is no name of a Debian package. {cure(text)}")
        found.append(text)
    return list(dict.fromkeys(found))


def cure(text: str) -> str:
    words = text.split()
    if words[0] in ("apt", "apt-get", "sudo", "RUN"):
        return "Write the names alone, one a line: the build calls apt-get."
    if len(words) > 1:
        return "Write one name a line."
    if text.startswith(("http:", "https:", "deb", "ppa:")) or "/" in text:
        return "Packages come from the image's own Debian; what is elsewhere needs an image of your own as BASE_IMAGE."
    if NAME.fullmatch(text.lower()):
        return f"Names are in small letters: {text.lower()}."
    return "Write a name such as libgomp1, or name=version."


def tools(packages: list[str]) -> list[str]:
    """Those that compiling Python packages may need: only they are installed before Python packages are."""
    found = [each for each in packages if bare(each) in TOOLS or bare(each).endswith("-dev")]
    return [*found, HEADERS] if found and set(map(bare, found)) != {"git"} else found


def bare(package: str) -> str:
    return re.split("[:=]", package)[0]
