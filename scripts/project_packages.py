"""The project's Python packages for the embedded mode: what the image's build does, in an environment of their own.

It stands in front of the platform's, `.venv`, which is left alone: other projects and the tests use that too.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dagster_stack.packages import debian, errors, explain, network, wanted
from scripts import env_file, package_index, venv
from scripts.console import BUILD_FOLDER, ROOT, Failure, done, run_logged, warn

FOLDER = BUILD_FOLDER / "packages"
LOCK = venv.REQUIREMENTS / "stack.lock"
UV = venv.FOLDER / "bin" / "uv"
#: In a project's folder below FOLDER: the request that its complete environment was made for.
STAMP = "stamp"


def python(project: Path) -> Path:
    """The Python that has a project's packages; the platform's own if it needs none, or before `ensure`."""
    own = FOLDER / project.name
    return own / "venv" / "bin" / "python" if (own / STAMP).exists() else venv.PYTHON


def ensure(project: Path) -> None:
    """Make a project's environment, or make it anew when its files ask for something else; nothing, where none does.

    Raises Failure, in the words of the image's build, for packages that can't be had.
    """
    own = FOLDER / project.name
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        try:
            wanted.write(project, out)
        except errors.Refused as refused:
            raise Failure(str(refused)) from None
        name_absent((out / "debian.txt").read_text(encoding="utf-8").split())
        asks = json.loads((out / "python" / wanted.SOURCES).read_text(encoding="utf-8"))
        if not asks and not any((out / "metadata" / wanted.SITE).iterdir()):
            shutil.rmtree(own, ignore_errors=True)
            return
        asked, stamp = fingerprint(out), own / STAMP
        if stamp.exists() and stamp.read_text(encoding="utf-8") == asked and python(project).exists():
            done(f"Python packages of {project.name} are those that its files ask for")
            return
        make(own, out)
        stamp.write_text(asked, encoding="utf-8")


def fingerprint(out: Path) -> str:
    """Of all that an environment is made from."""
    digest = hashlib.sha256(f"{sys.version} {venv.FOLDER}".encode())
    for file in [LOCK, *sorted(path for path in out.rglob("*") if path.is_file())]:
        content = file.read_bytes()
        name = file.relative_to(out).as_posix() if file.is_relative_to(out) else file.name
        digest.update(f"{name}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def make(own: Path, out: Path) -> None:
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(out / "python", own / "wanted")
    run_logged(
        f"Installing the Python packages of {own.name}",
        # In the platform's Python: this one may lack `packaging`.
        [str(venv.PYTHON), "-m", "scripts.project_packages", str(own / "wanted"), str(own / "venv")],
        excerpt=explain.excerpt,
    )
    shutil.copytree(out / "metadata", own / "venv", dirs_exist_ok=True)
    for sentence in (own / "wanted" / wanted.REPLACED).read_text(encoding="utf-8").splitlines():
        warn(sentence)


def name_absent(packages: list[str]) -> None:
    """Say which Debian packages of packages.txt this host lacks: nothing is installed on it."""
    if not packages or not shutil.which("dpkg-query"):
        return
    command = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    there = {line.split()[0] for line in result.stdout.splitlines() if line.endswith(" installed")}
    if absent := [each for each in packages if debian.bare(each) not in there]:
        warn(f"packages.txt names what this machine lacks: sudo apt-get install {' '.join(absent)}")


def install(files: Path, environment: Path) -> None:
    """Make an environment of what was collected, with the package indexes of `.env`; what uv prints is without passwords."""
    from dagster_stack.packages.install import COMMON
    from dagster_stack.packages.install import install as add

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    # Behind its own packages, with what the .pth files of the platform's say.
    platform = f"import site; site.addsitedir({str(venv.FOLDER / wanted.SITE)!r})\n"
    (environment / wanted.SITE / "platform.pth").write_text(platform, encoding="utf-8")
    settings = env_file.settings()
    indexes = package_index.found(settings)
    netrc = {"NETRC": str(ROOT / Path(settings["NETRC"]).expanduser())} if settings.get("NETRC") else {}
    # uv has its own list of whom it trusts; a proxy that re-signs TLS is in this machine's alone.
    trusted = network.SYSTEM_CERTIFICATES
    certificates = {"SSL_CERT_FILE": str(trusted)} if trusted.exists() else {}

    def uv(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [UV, *arguments, *COMMON, "--python", environment / "bin" / "python"],
            cwd=folder,
            env={**certificates, **os.environ, **network.of_uv(indexes), **netrc},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        result.stdout = network.hidden(result.stdout, network.logins(indexes))
        return result

    add(files, LOCK, environment, uv)


if __name__ == "__main__":
    errors.main(lambda: install(Path(sys.argv[1]), Path(sys.argv[2])))
