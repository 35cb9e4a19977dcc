"""The whole stack with LOGIN=on, as its users see it: viewer, operator, admin, and one of an issuer's.

The session's stack is switched on and off again by `make up`, which is what is tested first and last.
"""

import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Locator, Page, WebSocket, expect
from playwright.sync_api import Error as PlaywrightError

from scripts import env_file
from scripts.console import BUILD_FOLDER
from tests.browser.conftest import ARGUMENTS, PATIENCE_MS, VIEWPORT
from tests.conftest import free_ports
from tests.stack.door import CLIENT_SECRET, authority, stubs
from tests.stack.stack import Stack, docker
from tests.waiting import wait_until

JOB = "parallel_pipeline"
#: Milliseconds that its run may take on a busy machine.
RUN_MS = 240_000
#: Milliseconds after which no WebSocket of a user who was removed is open.
RELOAD_MS = 10_000
#: How often a page is loaded, and milliseconds that each has.
LOADS, LOAD_MS = 4, 15_000
USERS = {"vera": "viewer", "otto": "operator"}
OIDC = {"OIDC_ISSUER": "https://issuer:8443", "OIDC_CLIENT_ID": "dagit", "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_ROLE_CLAIM": "groups", "OIDC_ROLES": "viewer:everyone,operator:data,admin:ops"}  # fmt: skip
LAUNCH = """
mutation { launchRun(executionParams: {selector: {
  jobName: "parallel_pipeline", repositoryName: "__repository__", repositoryLocationName: "pipelines"}}) { __typename
  ... on UnauthorizedError { message } ... on PythonError { message } } }
"""
DELETE = 'mutation { deletePipelineRun(runId: "%s") { __typename } }'


@dataclass
class Login:
    """The stack with its door; who has which password."""

    stack: Stack
    browser: Browser
    passwords: dict[str, str]
    #: What `make up` said.
    said: str
    issuer: int

    @property
    def url(self) -> str:
        return self.stack.settings["DOOR_URL"]

    def page(self) -> Page:
        """Of somebody who has not logged in; the certificate is the door's own."""
        context = self.browser.new_context(viewport=VIEWPORT, ignore_https_errors=True)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        return page

    def page_of(self, user: str, path: str = "/") -> Page:
        page = self.page()
        go(page, f"{self.url}{path}")
        log_in(page, user, self.passwords[user])
        return page

    def ask(self, user: str, query: str) -> requests.Response:
        """By basic auth, as scripts do."""
        certificate = str(BUILD_FOLDER / "door" / f"{self.stack.project}.crt")
        with requests.Session() as session:
            session.trust_env = False
            return session.post(
                f"{self.url}/graphql", json={"query": query}, auth=(user, self.passwords[user]),
                verify=certificate, timeout=60,
            )  # fmt: skip


def go(page: Page, address: str) -> None:
    """Open an address, if need be again: Chromium gives up while networks of containers come and go."""
    for _ in range(LOADS - 1):
        try:
            page.goto(address)
            return
        except PlaywrightError as error:
            # The others: its page of errors was on its way, or it tries again by itself.
            if not any(
                word in str(error)
                for word in ("ERR_NETWORK_CHANGED", "chrome-error:", "interrupted by another")
            ):
                raise
    page.goto(address)


def log_in(page: Page, user: str, password: str) -> None:
    page.get_by_label("Name").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def shown(page: Page, wanted: Locator) -> Locator:
    """What a page shows, if need be after it was loaded again: Chromium drops requests when an address of this host
    changes (ERR_NETWORK_CHANGED), as they do while containers come and go."""
    for _ in range(LOADS - 1):
        try:
            wanted.wait_for(timeout=LOAD_MS)
            return wanted
        except PlaywrightError:
            with suppress(PlaywrightError):
                page.reload()
    wanted.wait_for()
    return wanted


@pytest.fixture(scope="module")
def switched_on(stack: Stack) -> Iterator[tuple[str, dict[str, str], int]]:
    """What `make up` said; the users' passwords; the issuer's port. Off again afterwards."""
    before = {each.service for each in stack.containers()} - {"door"}
    # The issuer is a company's, by the authority of which it has its certificate
    settings = {"LOGIN": "on", **OIDC, "TLS_CA_FILE": str(authority())}
    for name, value in settings.items():
        env_file.set_value(name, value, stack.env)
    try:
        said = stack.make("monitoring", timeout=1800).stdout
        assert "nobody can log in at OIDC_ISSUER: the door asked https://issuer:8443/" in said
        passwords = {"admin": stack.settings["DOOR_ADMIN_PASSWORD"]}
        for name, role in USERS.items():
            answer = stack.make("user", f"NAME={name}", f"ROLE={role}", "PASSWORD=new").stdout
            passwords[name] = answer.split()[-1]
        port = int(free_ports(1)[0])
        with stubs(stack, f"{stack.project}_outbound", port, only_issuer=True):
            assert "the door can ask https://issuer:8443" in stack.make("up").stdout
            yield said, passwords, port
    finally:
        for name in settings:
            env_file.set_value(name, "off" if name == "LOGIN" else "", stack.env)
        said = stack.make("up", timeout=1800).stdout
    # Then no door is left, and Dagit answers at its port as before
    after = {each.service for each in stack.containers()}
    assert "door" not in after
    assert before <= after
    assert f"http://127.0.0.1:{stack.settings['DAGIT_PORT']}" in said
    assert stack.graphql("{ version }")["version"]


@pytest.fixture
def login(stack: Stack, switched_on: tuple[str, dict[str, str], int], browser: Browser) -> Login:
    said, passwords, issuer = switched_on
    return Login(stack, browser, passwords, said, issuer)


def test_make_up_says_where_to_log_in_and_where_the_password_is_and_not_the_password(login: Login) -> None:
    assert re.search(rf"Dagit +{login.url} +user admin, DOOR_ADMIN_PASSWORD in \.env", login.said)
    assert login.url.startswith("https://127.0.0.1:")
    assert login.passwords["admin"] not in login.said


def published(stack: Stack) -> set[tuple[str, str, int]]:
    """The ports of this host that containers hold: service, address, port."""
    return {
        (each.service, port["HostIp"], int(port["HostPort"]))
        for each in stack.containers()
        for ports in stack.inspect(each.name)["NetworkSettings"]["Ports"].values()
        for port in ports or []
    }


def test_the_door_alone_has_ports_besides_pages_with_a_login_of_their_own(login: Login) -> None:
    # When the published ports of all containers are listed
    found = published(login.stack)
    ports = {name: int(login.stack.settings[name]) for name in ("DAGIT_PORT", "MINIO_PORT", "RABBITMQ_PORT",
                                                               "MINIO_CONSOLE_PORT")}  # fmt: skip

    assert found == {
        ("door", "127.0.0.1", ports["DAGIT_PORT"]),
        ("door", "127.0.0.1", ports["MINIO_PORT"]),
        ("rabbitmq", "127.0.0.1", ports["RABBITMQ_PORT"]),
        ("minio", "127.0.0.1", ports["MINIO_CONSOLE_PORT"]),
    }


def test_a_viewer_looks_and_launches_nothing(login: Login, screenshots: Path) -> None:
    # Given somebody who opens a page of Dagit, and mistypes the password once
    path = f"/locations/pipelines/jobs/{JOB}/playground"
    page = login.page()
    go(page, f"{login.url}{path}")
    page.screenshot(path=screenshots / "login.png")
    log_in(page, "vera", "no")
    expect(page.get_by_role("alert")).to_contain_text("is wrong")
    page.screenshot(path=screenshots / "login-wrong.png")
    # When they log in
    log_in(page, "vera", login.passwords["vera"])
    # Then the job is there, and its Launchpad is grey
    expect(shown(page, page.get_by_role("tab", name="Launchpad"))).to_be_disabled()
    page.screenshot(path=screenshots / "viewer.png")
    # And a mutation by hand is refused, by whatever way it comes
    answer = login.ask("vera", LAUNCH)
    assert "LaunchRunSuccess" not in answer.text
    assert "UnauthorizedError" in answer.text or "viewer" in answer.text


def test_an_operator_launches_and_an_admin_deletes(login: Login, screenshots: Path) -> None:
    # When an operator launches
    page = login.page_of("otto", f"/locations/pipelines/jobs/{JOB}/playground")
    shown(page, page.get_by_role("button", name="Launch Run")).click()
    page.wait_for_url(re.compile(r"/runs/[0-9a-f-]{36}"))
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=RUN_MS)
    page.screenshot(path=screenshots / "operator.png")
    run_id = re.findall(r"/runs/([0-9a-f-]{36})", page.url)[0]
    # Then the run has its name, over the WebSocket that showed it
    tags = login.ask(
        "otto", f'{{ runOrError(runId: "{run_id}") {{ ... on Run {{ tags {{ key value }} }} }} }}'
    )
    assert {"key": "user", "value": "otto"} in tags.json()["data"]["runOrError"]["tags"]
    # And only an admin deletes it
    assert "DeletePipelineRunSuccess" not in login.ask("otto", DELETE % run_id).text
    admin = login.page_of("admin", f"/runs/{run_id}")
    # The menu beside it has no name.
    shown(admin, admin.get_by_role("button", name="View tags and config")).locator(
        "xpath=following::button[1]"
    ).click()
    admin.get_by_role("menuitem", name="Delete").click()
    confirm = admin.get_by_role("button", name="Yes, delete 1 run")
    expect(confirm).to_be_visible()
    admin.screenshot(path=screenshots / "admin-deletes.png")
    confirm.click()
    wait_until(
        lambda: login.ask("admin", f'{{ runOrError(runId: "{run_id}") {{ __typename }} }}').text, 30, "the run is gone",
        until=lambda text: "RunNotFoundError" in text,
    )  # fmt: skip
    # And all of that is on record
    record = login.stack.make("audit").stdout
    assert re.search(r"vera .*launchRun", record), record
    assert re.search(r"otto .*launch", record), record
    assert re.search(r"admin .*deletePipelineRun", record), record


def test_a_logout_ends_it(login: Login, screenshots: Path) -> None:
    page = login.page_of("otto")
    page.wait_for_url(re.compile(r"/(overview|runs|home|locations|jobs)"))
    # Given the link that stands below Dagit's own navigation
    link = shown(page, page.get_by_role("link", name="Log out", exact=True))
    page.screenshot(path=screenshots / "log-out.png")
    link.click()
    expect(page.get_by_role("heading")).to_contain_text("otto, operator")
    page.screenshot(path=screenshots / "door.png")
    page.get_by_role("link", name="Log out").click()
    expect(page.get_by_label("Password")).to_be_visible()
    go(page, f"{login.url}/runs")
    expect(page.get_by_label("Password")).to_be_visible()


def test_a_user_who_is_removed_is_out_within_seconds(login: Login) -> None:
    login.passwords["gone"] = login.stack.make(
        "user", "NAME=gone", "ROLE=viewer", "PASSWORD=new"
    ).stdout.split()[-1]
    # Given a page that a WebSocket keeps up to date
    page = login.page()
    sockets: list[WebSocket] = []

    def opened(socket: WebSocket) -> None:
        sockets.append(socket)

    page.on("websocket", opened)
    go(page, f"{login.url}/runs")
    log_in(page, "gone", login.passwords["gone"])
    shown(page, page.get_by_role("link", name=re.compile("Runs")))
    assert "gone " in login.stack.make("users").stdout

    login.stack.make("user", "NAME=gone", "REMOVE=1")

    # Then it is none, and no other is let in
    page.wait_for_timeout(RELOAD_MS)
    assert sockets
    assert all(each.is_closed() for each in sockets)
    assert login.ask("gone", "{ version }").status_code == 401
    go(page, f"{login.url}/runs")
    expect(page.get_by_label("Password")).to_be_visible()
    assert "gone " not in login.stack.make("users").stdout


def test_a_user_of_the_issuer_has_the_role_of_the_claim(login: Login, screenshots: Path) -> None:
    requests.get(f"http://127.0.0.1:{login.issuer}/become", params={"groups": "data,everyone"}, timeout=20)
    page = login.page()
    go(page, f"{login.url}/locations/pipelines/jobs/{JOB}/playground")
    page.get_by_role("link", name=re.compile("Log in at")).click()
    page.wait_for_url(f"{login.url}/locations/pipelines/jobs/{JOB}/playground")
    expect(shown(page, page.get_by_role("button", name="Launch Run"))).to_be_enabled()
    go(page, f"{login.url}/door/")
    expect(page.get_by_role("heading")).to_contain_text("oidc:eva, operator")
    page.screenshot(path=screenshots / "oidc.png")


@pytest.mark.parametrize(
    ("path", "text", "follow"),
    [
        ("/flower/", "dagster@", "Tasks"),
        ("/prometheus/classic/alerts", "Inactive", "Graph"),
        ("/figures/", "Runs in progress", "6 h"),
    ],
)
def test_an_admins_page_works_under_its_prefix(
    login: Login, screenshots: Path, path: str, text: str, follow: str
) -> None:
    # Given that nothing of the page is missing
    page = login.page()
    failed: list[str] = []
    page.on(
        "response", lambda each: failed.append(f"{each.status} {each.url}") if each.status >= 400 else None
    )
    go(page, f"{login.url}{path}")
    failed.clear()
    log_in(page, "admin", login.passwords["admin"])
    # When its text is there and a link of it is followed
    expect(page.get_by_text(text).first).to_be_visible()
    page.screenshot(path=screenshots / f"door-{path.split('/')[1]}.png")
    page.get_by_role("link", name=follow).first.click()
    page.wait_for_load_state()
    # Then that is under the prefix as well
    assert page.url.startswith(f"{login.url}/{path.split('/')[1]}/")
    assert failed == []
    # And nobody else sees it
    other = login.page_of("otto", path)
    expect(other.get_by_role("heading")).to_contain_text("Not with your role")


def test_a_step_cannot_say_that_it_is_somebody(login: Login) -> None:
    # Given what code of a step can send, which shares networks with Dagit
    forged = ("X-Stack-User: admin", "X-Stack-Role: admin", "X-Stack-Door: guess")
    headers = [part for each in (*forged, "Content-Type: application/json") for part in ("-H", each)]
    answer = login.stack.exec(
        "worker",
        "curl",
        "-s",
        "-w",
        " %{http_code}",
        *headers,
        "-d",
        json.dumps({"query": LAUNCH}),
        "http://dagit:3000/graphql",
    ).stdout

    assert answer.endswith(" 401")
    # And what it could know: no container but the door has the secret
    secret = login.stack.settings["DOOR_SECRET"]
    for service in ("worker", "runner", "daemon", "dagit"):
        assert (
            secret
            not in login.stack.exec(
                service, "sh", "-c", "cat /proc/[0-9]*/environ 2>/dev/null || true"
            ).stdout
        )


#: Loads of which the median counts, and seconds by which the login and TLS may delay Dagit's first page on a busy machine:
#: half of what Dagit's own start takes in the browser, or this.
TIMED, DELAY_SECS = 7, 0.3


def test_the_first_page_after_the_login_is_there_about_as_soon_as_without_one(login: Login) -> None:
    # Given a browser that knows Dagit's own address, and a user who has typed the password
    dagit = login.stack.inspect(login.stack.container("dagit"))["NetworkSettings"]["Networks"]
    address = dagit[f"{login.stack.project}_door"]["IPAddress"]
    rules = [part for part in ARGUMENTS if "resolver" not in part]
    browser = login.browser.browser_type.launch(
        executable_path=shutil.which("chromium"), args=[*rules, f"--host-resolver-rules=MAP dagit {address}"]
    )
    headers = {
        "X-Stack-Door": login.stack.settings["DOOR_SECRET"],
        "X-Stack-User": "admin",
        "X-Stack-Role": "admin",
    }

    def first_page(by_door: bool, tries: int = LOADS) -> float:
        """Seconds until the navigation is shown, each time with an empty cache. A load during which an address of this host
        changed is none: Chromium drops its requests."""
        context = browser.new_context(
            viewport=VIEWPORT, ignore_https_errors=True, extra_http_headers={} if by_door else headers
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        dropped: list[str] = []
        page.on("requestfailed", lambda request: dropped.append(str(request.failure)))
        if by_door:
            go(page, f"{login.url}/")
            page.get_by_label("Name").fill("admin")
            page.get_by_label("Password").fill(login.passwords["admin"])
        began = time.monotonic()
        try:
            if by_door:
                page.get_by_role("button", name="Log in").click(no_wait_after=True)
            else:
                page.goto("http://dagit:3000/", wait_until="commit")
            page.get_by_role("link", name="Runs").first.wait_for()
            return time.monotonic() - began
        except PlaywrightError:
            if tries == 1 or not any("ERR_NETWORK_CHANGED" in failure for failure in dropped):
                raise
        finally:
            context.close()
        return first_page(by_door, tries - 1)

    # When both are asked in turn, once more than is counted
    times = [(first_page(True), first_page(False)) for _ in range(TIMED + 1)][1:]
    browser.close()
    by_door, alone = (statistics.median(each) for each in zip(*times, strict=True))
    # Then most of it is Dagit's own start in the browser
    print(f"first page: {by_door:.2f} s by the door, {alone:.2f} s without it; medians of {TIMED} in turn")
    assert by_door < alone + max(DELAY_SECS, alone / 2)


def test_no_port_of_this_host_and_of_any_container_answers_without_a_login(login: Login) -> None:
    # Given each port that a container listens on, at each address that it has
    found = {each.service: each.name for each in login.stack.containers() if each.state == "running"}
    targets = {
        (service, address, port)
        for service, name in found.items()
        for address in addresses(login.stack, name)
        for port in listening(login.stack, service)
    }
    ports = {port for _, _, port in published(login.stack)}
    assert {"dagit", "door", "flower", "prometheus", "metrics", "minio", "rabbitmq"} <= {
        each[0] for each in targets
    }
    # When all of them are asked from this host, and from where code of steps runs
    here = [f"{scheme}://127.0.0.1:{port}" for port in ports for scheme in ("http", "https")]
    there = [f"http://{address}:{port}" for _, address, port in sorted(targets)]
    worker = (docker(), "exec", "--interactive", login.stack.container("worker"))
    opened, inside = unlocked((), here), unlocked(worker, there)
    # Then none answers with a page but those that ask for a name and password; and figures, to code that shares networks
    assert opened == []
    assert [
        line for line in inside if int(line.split()[1].split("/")[2].rpartition(":")[2]) not in FIGURES
    ] == []


#: Ports of the page of the figures, Prometheus, postgres-exporter, and the figures of RabbitMQ and of backups.
FIGURES = (9808, 9090, 9187, 15692, 9854)
#: What is asked of each port.
PATHS = ("/", "/graphql?query={version}", "/metrics", "/api/overview", "/dagster/")
#: What a page may say to somebody without a login: it asks for one, or says that it is up.
LOGINS = (
    "httpd_password",
    "RabbitMQ Management",
    "MinIO Console",
    "AccessDenied",
    "plain HTTP request",
    "SSL-enabled",
)


#: Asks each page on its standard input, eight at once, for all paths, unless nothing answers there: status, address and
#: beginning, a line each.
ASK = r"""xargs -P 8 -I{} sh -c 'for path in $PATHS_ASKED; do
page=$(curl -skg --noproxy "*" --connect-timeout 1 -m 4 -w "\n%{http_code}" "{}$path" | tr -d "\000" | tr "\n" " ");
echo "${page##* } {}$path $(echo "$page" | cut -c1-3000)"; [ "${page##* }" != 000 ] || break; done'"""


def unlocked(command: tuple[str, ...], pages: list[str]) -> list[str]:
    """What pages gave away; a command asks from elsewhere."""
    script = f"export PATHS_ASKED='{' '.join(PATHS)}'; {ASK}"
    lines = subprocess.run(
        [*command, "sh", "-c", script], input="".join(f"{page}\n" for page in pages).encode(),
        capture_output=True, check=True, timeout=600,
    ).stdout.decode(errors="replace").splitlines()  # fmt: skip
    assert len(lines) >= len(pages)
    return [line[:300] for line in lines if line.startswith("2") and not any(word in line for word in LOGINS)]


def addresses(stack: Stack, container: str) -> list[str]:
    networks = stack.inspect(container)["NetworkSettings"]["Networks"]
    return [each["IPAddress"] for each in networks.values()]


def listening(stack: Stack, service: str) -> set[int]:
    """The ports on which a container listens for others."""
    lines = stack.exec(
        service, "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true"
    ).stdout.splitlines()
    sockets = [line.split()[1] for line in lines if line.split()[3:4] == ["0A"]]
    # 127.0.0.1, and Docker's own resolver at 127.0.0.11
    return {int(each.split(":")[1], 16) for each in sockets if not each.startswith(("0100007F", "0B00007F"))}


def test_links_to_reports_open_by_the_door(login: Login) -> None:
    link = next(iter(re.findall(r"https://\S+?/dagster/\S+", login.stack.make("demo", timeout=900).stdout)))

    page = login.page()
    go(page, link)
    expect(page.get_by_text("336,776")).to_be_visible()


def test_runs_do_not_notice_that_the_door_is_gone(login: Login) -> None:
    # Given a run under way
    answer = login.ask("otto", LAUNCH)
    assert "LaunchRunSuccess" in answer.text
    # When the door is killed
    login.stack.compose("kill", "door")
    # Then a job that the make commands launch runs to its end
    assert "SUCCESS" in login.stack.make("run", f"JOB={JOB}").stdout
    login.stack.compose("up", "--detach", "--no-deps", "--wait", "door")
    assert login.ask("otto", "{ version }").status_code == 200
