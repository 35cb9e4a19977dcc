"""deploy/kubernetes: valid by the schemas, and the same services as compose.yaml. No cluster runs it."""

import os
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dagster_stack.timing import DRAIN_SECS, EXIT_AFTER_SECS, PROBE_INTERVAL_SECS
from scripts.console import ROOT
from tests import compose_files

FOLDER = ROOT / "deploy" / "kubernetes"
DOCS = ROOT / "docs" / "kubernetes.md"
#: The releases that are maintained, and the oldest that managed clusters still have.
VERSIONS = ("1.31", "1.33", "1.35", "1.37")
SERVICES = ("dagit", "daemon", "runner", "worker", "worker-heavy", "init")
WORKERS = ("runner", "worker", "worker-heavy")
#: What a service has with Compose alone: of proxies and addresses of this host, of the door, and of the stack's own stores.
WITH_COMPOSE_ALONE = {
    "dagit": {"BIND_ADDRESS", "DOOR_SECRET_SHA256", "DAGSTER_STACK_BROKER_SCHEME", "DAGSTER_STACK_BROKER_PORT"},
    "init": {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "MINIO_MONITOR_USER", "MINIO_MONITOR_PASSWORD",
             "DAGSTER_STACK_TAKE_OVER"},
}  # fmt: skip
#: What the secrets of docs/kubernetes.md hold, by their names.
SECRETS = {
    "postgres": {"DAGSTER_POSTGRES_PASSWORD"},
    "s3": {"DAGSTER_STACK_S3_ACCESS_KEY", "DAGSTER_STACK_S3_SECRET_KEY", "DAGSTER_STACK_S3_SESSION_TOKEN",
           "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"},
    "rabbitmq": {"DAGSTER_STACK_BROKER_PASSWORD"},
}  # fmt: skip


@cache
def rendered(part: str) -> tuple[dict[str, Any], ...]:
    return render(FOLDER / part)


def render(folder: Path) -> tuple[dict[str, Any], ...]:
    """What `kubectl apply -k` would send."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl, "kubectl comes with requirements/dev.lock"
    result = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, "what is deprecated is said there"
    return tuple(yaml.safe_load_all(result.stdout))


def of_kind(part: str, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in rendered(part) if each["kind"] == kind}


def pod(service: str) -> dict[str, Any]:
    found = of_kind("init", "Job") if service == "init" else of_kind("base", "Deployment")
    return dict(found[service]["spec"]["template"]["spec"])


def container(service: str) -> dict[str, Any]:
    (found,) = pod(service)["containers"]
    return dict(found)


def compose(service: str) -> dict[str, Any]:
    return compose_files.services()[service]


def plain(text: Any) -> str:
    """A value of compose.yaml with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^{}]*)\}", r"\1", str(text)).replace("$$", "$")


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def size(text: Any) -> int:
    """Bytes, of Compose's and of Kubernetes's."""
    found = re.fullmatch(r"(\d+)([mg]|[MG]i)", plain(text))
    assert found, text
    return int(found[1]) * int(1024 ** {"m": 2, "g": 3}[found[2][0].lower()])


# --- by themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("part", ["base", "init"])
def test_each_object_is_valid_by_the_schemas(part: str, version: str) -> None:
    for each in rendered(part):
        kubernetes_validate.validate(each, version, strict=True)


def test_with_keda_too_all_but_its_own_kinds_are_valid() -> None:
    own = [each for each in rendered("keda") if each["apiVersion"] == "keda.sh/v1alpha1"]
    for each in rendered("keda"):
        if each not in own:
            kubernetes_validate.validate(each, VERSIONS[-1], strict=True)

    assert {(each["kind"], each["metadata"]["name"]) for each in own} == {
        ("ScaledObject", "worker"), ("ScaledObject", "worker-heavy"), ("TriggerAuthentication", "rabbitmq"),
    }  # fmt: skip


def test_a_wrong_object_would_be_seen() -> None:
    (wrong,) = [
        each for each in rendered("base") if each["metadata"]["name"] == "dagit" and each["kind"] == "Service"
    ]

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**wrong, "spec": {**wrong["spec"], "port": 1}}, VERSIONS[-1], strict=True
        )


def test_every_file_takes_part() -> None:
    named = re.compile(r"[\w-]+\.(?:yaml|env)")
    for folder in (path for path in FOLDER.iterdir() if path.is_dir()):
        text = re.sub("(?m)#.*$", "", (folder / "kustomization.yaml").read_text())
        assert {each.name for each in folder.iterdir()} - {"kustomization.yaml"} == set(named.findall(text))


# --- the same as with Compose ----------------------------------------------------------------------------


def test_all_services_that_keep_nothing_are_there_with_the_one_image() -> None:
    assert {*of_kind("base", "Deployment"), *of_kind("init", "Job")} == set(SERVICES)
    assert len({container(service)["image"] for service in SERVICES}) == 1
    assert len({compose(service)["image"] for service in SERVICES}) == 1


@pytest.mark.parametrize("service", SERVICES)
def test_the_command_is_that_of_compose(service: str) -> None:
    """Of the image's entrypoint: with Kubernetes's own `command` a pod would be without the project's variables."""
    assert container(service)["args"] == [plain(word) for word in compose(service)["command"]]
    assert "command" not in container(service)
    assert container(service).get("workingDir") == compose(service).get("working_dir")


@pytest.mark.parametrize("service", SERVICES)
def test_it_has_the_variables_that_compose_gives_it(service: str) -> None:
    part = "init" if service == "init" else "base"
    maps = {name.rpartition("-")[0]: set(each["data"]) for name, each in of_kind(part, "ConfigMap").items()}
    found = {each["name"] for each in container(service).get("env", [])}
    for each in container(service)["envFrom"]:
        found |= (
            maps[each["configMapRef"]["name"].rpartition("-")[0]]
            if "configMapRef" in each
            else SECRETS[each["secretRef"]["name"]]
        )

    # Of an outside Postgres whose certificate is verified: scripts/certificates.py.
    assert found - {"PGSSLROOTCERT"} == set(compose(service)["environment"]) - WITH_COMPOSE_ALONE.get(
        service, set()
    )


@pytest.mark.parametrize("service", SERVICES)
def test_no_variable_is_an_empty_text(service: str) -> None:
    """An API server leaves it out, and each `kubectl apply` would find a difference."""
    assert [each["name"] for each in container(service).get("env", []) if each.get("value") == ""] == []


def test_dagit_knows_no_password_of_the_broker() -> None:
    assert "rabbitmq" not in str(pod("dagit"))


@pytest.mark.parametrize(
    ("name", "variable", "service"),
    [
        ("runner", "RUNNERS", "runner"),
        ("worker", "WORKERS", "worker"),
        ("worker-heavy", "HEAVY_WORKERS", "worker-heavy"),
    ],
)
def test_there_are_as_many_as_with_compose(name: str, variable: str, service: str) -> None:
    assert of_kind("base", "Deployment")[name]["spec"]["replicas"] == int(plain(compose(service)["scale"]))
    assert variable in compose(service)["scale"]


def test_runs_at_once_are_those_that_runners_take() -> None:
    (settings,) = (
        each["data"] for name, each in of_kind("base", "ConfigMap").items() if name.startswith("storage-")
    )
    assert int(settings["RUNNERS"]) == of_kind("base", "Deployment")["runner"]["spec"]["replicas"]
    arguments = container("runner")["args"]
    assert settings["RUNNER_CONCURRENCY"] == arguments[arguments.index("--concurrency") + 1]


def test_a_second_daemon_stands_by_whoever_starts_it() -> None:
    """As an update does, or a cluster that has lost a node."""
    (daemons,) = [each["value"] for each in container("daemon")["env"] if each["name"] == "DAEMONS"]

    assert int(daemons) > 1
    assert of_kind("base", "Deployment")["daemon"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("service", [each for each in SERVICES if each != "init"])
def test_a_pod_gets_the_time_to_end_that_a_container_gets(service: str) -> None:
    grace = pod(service)["terminationGracePeriodSeconds"]

    assert grace == seconds(compose(service)["stop_grace_period"])
    assert service not in WORKERS or grace > DRAIN_SECS


@pytest.mark.parametrize("service", [each for each in SERVICES if each != "init"])
def test_probes_ask_what_composes_health_check_asks(service: str) -> None:
    check = compose(service)["healthcheck"]
    kind, *words = check["test"]
    command = words if kind == "CMD" else ["sh", "-c", *words]
    found = container(service)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert found[probe]["exec"]["command"] == command
        assert found[probe]["timeoutSeconds"] == seconds(check["timeout"])

    assert lasts(found["startupProbe"]) == seconds(check["start_period"])
    assert found["readinessProbe"]["periodSeconds"] == seconds(check["interval"])
    assert found["readinessProbe"]["failureThreshold"] == check["retries"]
    # A process that can't work ends itself, after the time that a restart of the broker takes.
    assert lasts(found["livenessProbe"]) > EXIT_AFTER_SECS + PROBE_INTERVAL_SECS


def lasts(probe: dict[str, Any]) -> int:
    return int(probe["periodSeconds"]) * int(probe["failureThreshold"])


@pytest.mark.parametrize("service", SERVICES)
def test_it_may_do_no_more_than_with_compose(service: str) -> None:
    limits, own, whole = compose(service), container(service)["securityContext"], pod(service)
    assert limits["read_only"]
    assert limits["cap_drop"] == ["ALL"]
    assert limits["security_opt"] == ["no-new-privileges:true"]
    assert own == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "docker/dagster/Dockerfile").read_text(), re.MULTILINE)[
        -1
    ]
    assert whole["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": int(user[0]), "runAsGroup": int(user[1]), "fsGroup": int(user[1]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert whole["automountServiceAccountToken"] is False


@pytest.mark.parametrize("service", SERVICES)
def test_memory_and_scratch_space_are_those_of_compose(service: str) -> None:
    limits = compose(service)
    mounts = {each["mountPath"]: each["name"] for each in container(service)["volumeMounts"]}
    sizes = {each["name"]: each["emptyDir"] for each in pod(service)["volumes"]}

    assert size(container(service)["resources"]["limits"]["memory"]) == size(limits["mem_limit"])
    (scratch,) = limits["tmpfs"]
    path, _, options = plain(scratch).partition(":")
    assert size(sizes[mounts[path]]["sizeLimit"]) == size(options.rpartition("size=")[2])
    assert sizes[mounts[path]]["medium"] == "Memory"
    assert ("/dev/shm" in mounts) == ("shm_size" in limits) == (service in WORKERS)
    if service in WORKERS:
        assert size(sizes[mounts["/dev/shm"]]["sizeLimit"]) == size(limits["shm_size"])
    assert "/opt/data" in mounts


def test_nothing_is_let_in_and_all_pods_are_meant() -> None:
    (policy,) = of_kind("base", "NetworkPolicy").values()
    labels = policy["spec"]["podSelector"]["matchLabels"].items()

    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert "ingress" not in policy["spec"]
    for each in of_kind("base", "Deployment").values():
        assert labels <= each["spec"]["template"]["metadata"]["labels"].items()


# --- KEDA ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["worker", "worker-heavy"])
def test_keda_counts_the_queue_that_the_workers_take_from(service: str) -> None:
    scaled = of_kind("keda", "ScaledObject")[service]["spec"]
    (trigger,) = scaled["triggers"]
    arguments = container(service)["args"]

    assert scaled["scaleTargetRef"] == {"name": service}
    assert trigger["metadata"]["queueName"] == arguments[arguments.index("-Q") + 1]
    # As `make autoscale` counts: what waits and what is in work, for each of a worker's processes.
    assert trigger["metadata"]["value"] == arguments[arguments.index("--concurrency") + 1]
    assert trigger["metadata"]["excludeUnacknowledged"] == "false"
    assert trigger["authenticationRef"]["name"] in of_kind("keda", "TriggerAuthentication")
    # And its number is not set back by the next `kubectl apply`
    assert "replicas" not in of_kind("keda", "Deployment")[service]["spec"]
    assert "replicas" in of_kind("keda", "Deployment")["runner"]["spec"]


# --- docs ------------------------------------------------------------------------------------------------


def test_the_docs_name_each_secret_and_what_is_in_it() -> None:
    text = DOCS.read_text()
    for name, keys in SECRETS.items():
        assert f"kubectl create secret generic {name} " in text
        for key in keys:
            assert key in text, key


@pytest.mark.parametrize("part", ["base", "init"])
def test_an_overlay_as_in_the_docs_changes_address_and_image(part: str, tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    here = os.path.relpath(ROOT, tmp_path.resolve())
    text = example.replace("../dagster-celery-stack", here).replace("kubernetes/base", f"kubernetes/{part}")
    (tmp_path / "kustomization.yaml").write_text(text)

    found = render(tmp_path)
    (storage,) = [each for each in found if each["metadata"]["name"].startswith("storage-")]
    pods = [str(each) for each in found if each["kind"] in ("Deployment", "Job")]

    assert storage["data"]["DAGSTER_POSTGRES_HOST"] == "postgres.mycompany.com"
    assert storage["data"]["DAGSTER_POSTGRES_PORT"] == "5432"
    assert pods
    for pod in pods:
        assert storage["metadata"]["name"] in pod
        assert "'registry.mycompany.com/dagster-stack:1'" in pod


def test_the_docs_say_that_nobody_has_run_it() -> None:
    assert "checked, not run" in DOCS.read_text()
