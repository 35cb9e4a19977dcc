"""TLS_CERT and TLS_KEY: what the door could not take is refused, what browsers will refuse is said."""

import subprocess
from pathlib import Path

import pytest

from scripts import login
from scripts.console import Failure
from scripts.preflight import Finding, report


def made(
    folder: Path, name: str, *options: str, alternative: str = "DNS:dagit.example.com"
) -> tuple[Path, Path]:
    """A certificate and its key, as openssl makes them."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
               "-addext", f"subjectAltName={alternative}", "-keyout", str(key), "-out", str(cert), *options]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def expired(folder: Path, name: str) -> tuple[Path, Path]:
    """One of a day that is gone: `openssl ca` alone takes dates, in all releases."""
    cert, key = made(folder, name)
    request, config = folder / "request.csr", folder / "ca.cnf"
    (folder / "index.txt").touch()
    config.write_text(
        f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index.txt\nrand_serial=yes\nnew_certs_dir={folder}\ndefault_md=sha256\n"
        "policy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\nsubjectAltName=DNS:dagit.example.com\n"
    )
    for command in (
        ["req", "-new", "-key", str(key), "-subj", f"/CN={name}", "-out", str(request)],
        ["ca", "-batch", "-selfsign", "-config", str(config), "-keyfile", str(key), "-in", str(request), "-out", str(cert),
         "-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-notext"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return cert, key


def found(env: Path, cert: Path, key: Path, more: str = "PUBLIC_HOST=dagit.example.com\n") -> list[Finding]:
    env.write_text(f"LOGIN=on\nTLS_CERT={cert}\nTLS_KEY={key}\n{more}")
    return [finding for finding in login.findings() if finding.cure]


def test_a_pair_for_the_name_in_the_address_is_no_complaint(env: Path, tmp_path: Path) -> None:
    assert found(env, *made(tmp_path, "good")) == []


def test_a_chain_is_taken_as_certbot_writes_it(env: Path, tmp_path: Path) -> None:
    cert, key = made(tmp_path, "good")
    other, _ = made(tmp_path, "between")
    cert.write_text(cert.read_text() + other.read_text())

    assert found(env, cert, key) == []


def test_one_without_the_other_is_named(env: Path, tmp_path: Path) -> None:
    cert, _ = made(tmp_path, "good")
    env.write_text(f"LOGIN=on\nTLS_CERT={cert}\n")

    with pytest.raises(Failure, match="TLS_CERT and TLS_KEY go together"):
        report(login.findings())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("missing", r"TLS_KEY=\S+ can't be read \(No such file or directory\)"),
        ("folder", r"TLS_KEY=\S+ can't be read \(Is a directory\)"),
        ("binary", r"TLS_KEY=\S+ can't be read \(it is not text\)"),
        ("other key", r"TLS_CERT=\S+ and TLS_KEY=\S+ do not belong together"),
        ("password", r"TLS_KEY=\S+ asks for a password, which nobody types"),
        ("certificate twice", r"TLS_KEY=\S+ has no line PRIVATE KEY-----"),
        ("broken", r"can't be used"),
    ],
)
def test_what_the_door_could_not_take_is_refused_with_the_cure(
    env: Path, tmp_path: Path, fault: str, words: str
) -> None:
    cert, key = made(tmp_path, "good")
    match fault:
        case "missing":
            key.unlink()
        case "folder":
            key = tmp_path
        case "binary":
            key.write_bytes(b"\xff\x00")
        case "other key":
            _, key = made(tmp_path, "other")
        case "password":
            command = [
                "openssl",
                "pkey",
                "-in",
                str(key),
                "-aes256",
                "-passout",
                "pass:secret",
                "-out",
                str(key) + ".new",
            ]
            subprocess.run(command, check=True, capture_output=True)
            key = Path(f"{key}.new")
        case "certificate twice":
            key = cert
        case _:
            key.write_text(key.read_text().replace("\n", "\nAAAA", 1))

    (finding,) = found(env, cert, key)

    assert finding.fatal
    with pytest.raises(Failure, match=words):
        report([finding])


def test_a_certificate_that_is_none_is_named(env: Path, tmp_path: Path) -> None:
    cert, key = made(tmp_path, "good")
    cert.write_text("x")

    assert "has no line -----BEGIN CERTIFICATE-----" in found(env, cert, key)[0].cure


def test_one_that_has_expired_is_said_and_does_not_stop_a_deployment(env: Path, tmp_path: Path) -> None:
    (finding,) = found(env, *expired(tmp_path, "old"))

    assert "has expired: browsers refuse it. Renew it" in finding.cure
    assert not finding.fatal


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ("PUBLIC_HOST=other.example.com\n", "other.example.com"),
        ("PUBLIC_HOST=dagit.example.com,192.0.2.7\n", "192.0.2.7"),
        ("", "127.0.0.1"),
        ("BIND_ADDRESS=::1\n", "[::1]"),
    ],
)
def test_one_for_another_name_is_said(env: Path, tmp_path: Path, settings: str, name: str) -> None:
    (finding,) = found(env, *made(tmp_path, "good"), settings)

    assert f"is not for {name}, which is in the address of Dagit" in finding.cure
    assert not finding.fatal
