"""A stack over several hosts, as tests touch it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts import env_file
from tests.hosts.engines import FIRST, Engine
from tests.stack import runs
from tests.stack.autoscaling import workers
from tests.stack.stack import RUN_SECS, Stack

#: The location is called as the copied folder is.
JOB, LOCATION = "spread", "code"
LOGINS = ("POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "POSTGRES_PORT", "RABBITMQ_USER", "RABBITMQ_PASSWORD",
          "RABBITMQ_VHOST", "RABBITMQ_AMQP_PORT", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_ENDPOINT_URL", "S3_BUCKET")  # fmt: skip
#: Each store by TLS, with the certificates in CA: why it does not take the login, empty where it does.
TRY_LOGINS = """
import base64, json, os
import boto3, kombu, psycopg2
of = os.environ
open("/tmp/ca.pem", "wb").write(base64.b64decode(of["CA"]))
broker = f"amqps://{of['RABBITMQ_USER']}:{of['RABBITMQ_PASSWORD']}@rabbitmq:{of['RABBITMQ_AMQP_PORT']}/{of['RABBITMQ_VHOST']}"
keys = {"aws_access_key_id": of["S3_ACCESS_KEY"], "aws_secret_access_key": of["S3_SECRET_KEY"], "region_name": "us-east-1"}
tries = {
    "postgres": lambda: psycopg2.connect(
        host="postgres", port=of["POSTGRES_PORT"], user=of["POSTGRES_USER"], password=of["POSTGRES_PASSWORD"],
        dbname=of["POSTGRES_DB"], sslmode="verify-full", sslrootcert="/tmp/ca.pem"),
    "rabbitmq": lambda: kombu.Connection(broker, ssl={"server_hostname": "rabbitmq", "ca_certs": "/tmp/ca.pem"}).connect(),
    "s3": lambda: boto3.client("s3", endpoint_url=of["S3_ENDPOINT_URL"], verify="/tmp/ca.pem", **keys).put_object(
        Bucket=of["S3_BUCKET"], Key="test/login", Body=b""),
}
found = {}
for store, connect in tries.items():
    try:
        connect()
        found[store] = ""
    except Exception as error:
        found[store] = repr(error)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Cluster:
    """The stack, further hosts by name, and the folder of the code that they execute."""

    stack: Stack
    boxes: Mapping[str, Engine]
    code: Path

    def join(self, name: str, address: str = "") -> str:
        """`make host ADD=…`; again does no harm."""
        add = f"ADD={address or self.boxes[name].url}"
        return self.stack.make("host", add, f"NAME={name}", timeout=1800).stdout

    def settings_of(self, name: str) -> dict[str, str]:
        """The host's own file."""
        return env_file.read(self.stack.env.with_name(f"{self.stack.env.name}.{name}"))

    def edit(self, text: str) -> None:
        """The code as it is deployed next is another one."""
        file = self.code / "src" / "hosts_project" / "definitions.py"
        file.write_text(f"{file.read_text()}\n# {text}\n")

    def launch(self, steps: int, seconds: float) -> str:
        config = {"ops": {"split": {"config": {"steps": steps, "seconds": seconds}}}}
        return self.stack.launch(JOB, config, location=LOCATION)

    def succeed(self, steps: int, seconds: float = 0.2) -> str:
        """A run to its good end; its id."""
        run_id = self.launch(steps, seconds)
        self.require_success(run_id, steps)
        return run_id

    def require_success(self, run_id: str, steps: int, timeout: float = RUN_SECS) -> None:
        """It succeeds, and each step records success once."""
        assert self.stack.wait_for_run(run_id, timeout)["status"] == "SUCCESS", self.stack.failure_texts(
            run_id
        )
        found = runs.count_events(self.stack, run_id, "STEP_SUCCESS")
        assert len(found) == steps + 2
        assert set(found.values()) == {1}

    def places(self, run_id: str) -> Counter[str]:
        """How many steps each host executed, as the steps themselves say."""
        told = self.stack.metadata(run_id, "count")
        return Counter({host: int(told[host]) for host in ("first", *self.boxes) if host in told})

    def containers(self, name: str, *filters: str) -> list[str]:
        """The stack's containers that run on a further host."""
        label = f"label=com.docker.compose.project={self.stack.project}"
        options = [part for each in (label, *filters) for part in ("--filter", each)]
        return self.boxes[name].docker("ps", *options, "--format", "{{.Names}}").split()

    def ids(self, name: str) -> list[str]:
        label = f"label=com.docker.compose.project={self.stack.project}"
        return self.boxes[name].docker("ps", "--no-trunc", "--filter", label, "--format", "{{.ID}}").split()

    def workers(self) -> dict[str, str]:
        """The workers on the queue `dagster` whose containers run, by name, each with its host."""
        label = "label=com.docker.compose.service=worker"
        joined = [name for name in self.boxes if name in self.stack.settings.get("HOSTS", "").split(",")]
        found = dict.fromkeys(workers(self.stack), "first")
        for name in joined:
            ids = self.boxes[name].docker(
                "ps", "--filter", f"label=com.docker.compose.project={self.stack.project}", "--filter", label,
                "--format", "{{.ID}}", check=False,
            ).split()  # fmt: skip
            found |= {f"dagster@{each}": name for each in ids}
        return found

    def refused(self, name: str, settings: Mapping[str, str]) -> set[str]:
        """The stores that don't take these logins, asked from a container on that host."""
        file = self.stack.env.with_name("try-logins")
        file.write_text("".join(f"{key}={settings[key]}\n" for key in LOGINS))
        names = [
            part for store in ("postgres", "rabbitmq", "minio") for part in ("--add-host", f"{store}:{FIRST}")
        ]
        command = ["run", "--rm", "--env-file", str(file), *names, "--env", f"CA={settings['HOST_CA']}", "--entrypoint",
                   "python3", f"{self.stack.project}/dagster", "-P", "-c", TRY_LOGINS]  # fmt: skip
        said = json.loads(self.boxes[name].docker(*command))
        print(said)
        return {store for store, problem in said.items() if problem}

    @contextmanager
    def kept_out_of_reach(self, name: str) -> Iterator[None]:
        """Its engine can't be asked, while its containers go on."""
        socket = self.boxes[name].socket
        hidden = socket.with_suffix(".hidden")
        socket.rename(hidden)
        try:
            yield
        finally:
            hidden.rename(socket)

    def codes(self) -> dict[str, set[str]]:
        """The code of each host's workers, as they answer."""
        answers = json.loads(self.stack.compose("run", "--rm", "--no-deps", "-T", "cli", "python", "-m", "dagster_stack",
                                                "workers", "--json").stdout)  # fmt: skip
        found: dict[str, set[str]] = {}
        for each in answers:
            found.setdefault(each["host"] or "first", set()).add(each["code"])
        return found
