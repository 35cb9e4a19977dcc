"""How rclone starts in its image: with whom the stack trusts, in the one way that it understands."""

import os
import subprocess
from pathlib import Path

from scripts.console import ROOT


def test_rclone_trusts_by_the_variable_that_go_reads_and_not_by_that_of_boto3(tmp_path: Path) -> None:
    """Its transport takes no AWS_CA_BUNDLE: with one it reaches no store at all."""
    for name, text in (("python3", 'echo "made: $2"'), ("rclone", 'env; echo "rclone $*"')):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    trust = {"SSL_CERT_FILE": "/tmp/bundle.pem", "AWS_CA_BUNDLE": "/tmp/bundle.pem"}

    said = subprocess.run(
        ["sh", str(ROOT / "docker" / "backup" / "rclone"), "sync", "a b"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **trust}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip

    assert "made: from dagster_stack import authorities; authorities.write()" in said
    assert said.endswith("rclone sync a b\n")
    assert "SSL_CERT_FILE=/tmp/bundle.pem" in said
    assert "AWS_CA_BUNDLE" not in said
