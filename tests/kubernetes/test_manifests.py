"""deploy/kubernetes before the API server of a real Kubernetes. It takes objects; nothing here starts their pods."""

import json
import re
from typing import Any

import pytest
import yaml

from scripts.console import ROOT
from tests.kubernetes.api_server import Shell

# The first one waits for the image's build.
pytestmark = pytest.mark.timeout(3600)

FOLDER = "deploy/kubernetes"
#: What the docs type and needs pods that run.
NEEDS_PODS = ("kubectl wait ", "kubectl port-forward ")
S3_KEYS = (
    "DAGSTER_STACK_S3_ACCESS_KEY",
    "DAGSTER_STACK_S3_SECRET_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
)


def typed() -> list[str]:
    """The commands of the docs, in their order."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.strip() for line in lines if line.strip().startswith("kubectl ")]
    return [each for each in commands if not each.startswith(NEEDS_PODS)]


def pods(shell: Shell, part: str) -> list[dict[str, Any]]:
    """Those that controllers would make."""
    found = yaml.safe_load_all(shell.accepts(f"kubectl kustomize {FOLDER}/{part}"))
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": each["metadata"]["name"], **each["spec"]["template"]["metadata"]},
            "spec": each["spec"]["template"]["spec"],
        }
        for each in found
        if each["kind"] in ("Deployment", "Job")
    ]


@pytest.mark.parametrize("part", ["init", "base", "keda"])
def test_a_dry_run_finds_nothing(shell: Shell, part: str) -> None:
    printed = shell.accepts(f"kubectl apply --dry-run=server -k {FOLDER}/{part}").splitlines()

    assert printed
    assert all(line.endswith(" created (server dry run)") for line in printed)


def test_what_the_docs_type_is_taken_and_a_second_time_changes_nothing(shell: Shell) -> None:
    (shell.folder / "s3.env").write_text("".join(f"{key}=x\n" for key in S3_KEYS))
    commands = typed()
    for command in commands:
        shell.accepts(command)

    applied = [each for each in commands if each.startswith("kubectl apply ")]
    assert [each.rpartition("/")[2] for each in applied] == ["init", "base", "keda"]
    for command in applied:
        if not command.endswith("base"):  # which would take the workers back from KEDA
            printed = shell.accepts(command).splitlines()
            assert [line for line in printed if not line.endswith(" unchanged")] == []


@pytest.mark.parametrize("part", ["init", "base"])
def test_the_pods_meet_the_strictest_standard(shell: Shell, part: str) -> None:
    for pod in pods(shell, part):
        shell.accepts("kubectl create --dry-run=server --filename -", json.dumps(pod))

        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
        why = shell.refuses("kubectl create --dry-run=server --filename -", json.dumps(pod))
        assert 'violates PodSecurity "restricted' in why


def test_a_job_of_another_image_takes_the_place_of_the_former_one_alone(shell: Shell) -> None:
    shell.accepts(f"kubectl apply -k {FOLDER}/init")
    job = shell.accepts(f"kubectl kustomize {FOLDER}/init").replace("dagster-stack:latest", "dagster-stack:2")

    assert "field is immutable" in shell.refuses("kubectl apply --filename -", job)
    shell.accepts("kubectl delete job init --ignore-not-found")
    shell.accepts("kubectl apply --filename -", job)


def test_the_number_of_workers_is_kedas(shell: Shell) -> None:
    def number() -> str:
        return shell.accepts("kubectl get deployment worker --output jsonpath={.spec.replicas}")

    # What docs/kubernetes.md warns of: the first time it falls.
    shell.accepts(f"kubectl apply -k {FOLDER}/base")
    assert number() == "2"
    shell.accepts(f"kubectl apply -k {FOLDER}/keda")
    assert number() == "1"

    shell.accepts("kubectl scale deployment worker --replicas=5")
    shell.accepts(f"kubectl apply -k {FOLDER}/keda")
    assert number() == "5"

    shell.accepts(f"kubectl apply -k {FOLDER}/base")
    assert number() == "2"


@pytest.mark.parametrize(
    ("right", "wrong", "why"),
    [
        ("terminationGracePeriodSeconds: 30", "terminationGracePeriod: 30", "unknown field"),
        ("cooldownPeriod: 300", "cooldown: 300", "unknown field"),
        (
            "mountPath: /opt/data\n          name: data",
            "mountPath: /opt/data\n          name: files",
            "Not found",
        ),
    ],
)
def test_what_is_wrong_would_be_refused(shell: Shell, right: str, wrong: str, why: str) -> None:
    rendered = shell.accepts(f"kubectl kustomize {FOLDER}/keda")
    assert right in rendered

    assert why in shell.refuses("kubectl apply --dry-run=server --filename -", rendered.replace(right, wrong))
