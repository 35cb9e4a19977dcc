"""The stack's own certificate authority, as INTERNAL_TLS=on starts it: what it issues, and when it issues anew."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.console import ROOT

ISSUE = ROOT / "docker" / "certificates" / "issue"

Issue = Callable[..., str]


@pytest.fixture
def issue(tmp_path: Path) -> Issue:
    """Issues certificates into the test's folder for a stack of that name; returns what it says."""

    def run(*stores: str, project: str = "a-stack") -> str:
        environment = os.environ | {"CERTIFICATES": str(tmp_path), "COMPOSE_PROJECT_NAME": project}
        return subprocess.run(
            ["sh", ISSUE, *stores], env=environment, check=True, capture_output=True, text=True
        ).stdout

    return run


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def is_trusted(folder: Path, store: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", store]
    files = ["-CAfile", str(folder / "trust" / "ca.pem"), str(folder / store / "cert.pem")]
    return subprocess.run([*command, *files], check=False, capture_output=True).returncode == 0


def let_age(pair: Path, days: int) -> None:
    """Gives a pair a certificate of its own key and name that lasts for so many more days."""
    certificate, key = pair / "cert.pem", pair / "key.pem"
    subject = openssl("x509", "-in", certificate, "-noout", "-subject", "-nameopt", "RFC2253")
    openssl(
        "req", "-x509", "-new", "-key", key, "-days", str(days), "-out", certificate,
        "-subj", "/" + subject.strip().removeprefix("subject="), "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip


@pytest.mark.parametrize("length", [1, 25, 63, 64, 65, 200])
def test_a_stack_s_name_may_have_any_length(issue: Issue, tmp_path: Path, length: int) -> None:
    issue("postgres", project="s" * length)
    assert is_trusted(tmp_path, "postgres")
    assert "s" * min(length, 64) in openssl(
        "x509", "-in", tmp_path / "authority/cert.pem", "-noout", "-subject"
    )


def test_what_is_there_stays(issue: Issue, tmp_path: Path) -> None:
    assert issue("postgres", "minio")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.pem")}
    assert issue("postgres", "minio") == ""
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.pem")} == before


def test_one_store_more_leaves_the_others(issue: Issue, tmp_path: Path) -> None:
    issue("postgres")
    assert issue("postgres", "rabbitmq") == "certificates: made one for rabbitmq\n"
    assert is_trusted(tmp_path, "rabbitmq")


def test_a_store_s_certificate_is_made_anew_when_half_its_time_is_over(issue: Issue, tmp_path: Path) -> None:
    issue("postgres", "minio")
    let_age(tmp_path / "postgres", days=1800)
    assert issue("postgres", "minio") == "certificates: made one for postgres\n"
    assert is_trusted(tmp_path, "postgres")


def test_the_authority_before_is_trusted_until_each_store_has_its_new_certificate(
    issue: Issue, tmp_path: Path
) -> None:
    issue("postgres")
    let_age(tmp_path / "authority", days=3600)
    former = (tmp_path / "authority" / "cert.pem").read_text()
    # A store that runs has what the former one issued, until its next start.
    running = tmp_path / "running"
    running.mkdir()
    openssl(
        "req", "-x509", "-new", "-key", tmp_path / "postgres/key.pem", "-days", "3650", "-subj", "/CN=running",
        "-CA", tmp_path / "authority/cert.pem", "-CAkey", tmp_path / "authority/key.pem",
        "-addext", "subjectAltName=DNS:running", "-addext", "basicConstraints=critical,CA:false",
        "-addext", "extendedKeyUsage=serverAuth", "-out", running / "cert.pem",
    )  # fmt: skip
    assert (
        issue("postgres")
        == "certificates: made a certificate authority\ncertificates: made one for postgres\n"
    )
    assert former in (tmp_path / "trust" / "ca.pem").read_text()
    assert is_trusted(tmp_path, "postgres")
    assert is_trusted(tmp_path, "running")


def test_a_pair_of_which_half_was_written_is_made_anew(issue: Issue, tmp_path: Path) -> None:
    issue("postgres", "minio")
    (tmp_path / "postgres/key.pem").write_bytes((tmp_path / "minio/key.pem").read_bytes())
    assert issue("postgres", "minio") == "certificates: made one for postgres\n"
    assert is_trusted(tmp_path, "postgres")
