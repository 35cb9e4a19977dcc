"""What decides that an image is built again, and what a build gets of the host."""

import re
from pathlib import Path

import pytest

from scripts import base_image, images
from scripts import project as user_project
from scripts.console import ROOT, Failure
from scripts.images import Image, build_step, write_certificates
from tests import compose_files
from tests.unit.machines import FakeDocker, calls

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one image of two files."""
    root = tmp_path / "project"
    (root / "docker").mkdir(parents=True)
    (root / "docker" / "Dockerfile").write_text("FROM x\n")
    (root / "docker" / "start").write_text("exec x\n")
    monkeypatch.setattr(images, "ROOT", root)
    return root


IMAGE = Image("stack/postgres", "postgres", ("docker",))


@pytest.mark.usefixtures("project")
def test_an_image_is_not_stale_while_nothing_changed() -> None:
    assert IMAGE.digest("base") == IMAGE.digest("base")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "docker/start").write_text("exec y\n"),
        lambda root: (root / "docker/start").rename(root / "docker/begin"),
        lambda root: (root / "docker/start").unlink(),
        lambda root: (root / "docker/new").touch(),
    ],
    ids=["content", "name", "removed", "added"],
)
def test_a_changed_input_makes_the_image_stale(project: Path, change) -> None:  # type: ignore[no-untyped-def]
    before = IMAGE.digest("base")

    change(project)

    assert IMAGE.digest("base") != before


@pytest.mark.usefixtures("project")
def test_another_base_makes_the_image_stale() -> None:
    assert IMAGE.digest("base") != IMAGE.digest("other")


def test_what_python_leaves_behind_a_files_mode_and_its_time_do_not_matter(project: Path) -> None:
    before = IMAGE.digest("base")
    (project / "docker/__pycache__").mkdir()
    (project / "docker/__pycache__/x.pyc").write_bytes(b"1")
    (project / "docker/start").touch()
    (project / "docker/start").chmod(0o700)
    (project / "unrelated").touch()

    assert IMAGE.digest("base") == before


def test_the_committed_images_have_inputs_that_exist(env: Path) -> None:
    env.write_text("")

    for image in images.images():
        assert all((ROOT / name).exists() for name in image.inputs), image.name
        assert list(image.files())


def test_what_an_image_is_built_from_is_its_dockerfiles_context(env: Path) -> None:
    """Every COPY of the Dagster image's Dockerfile is one of its inputs, else a change would be missed."""
    env.write_text("")
    dagster = next(image for image in images.images() if image.service == "init")
    dockerfile = (ROOT / "docker/dagster/Dockerfile").read_text()

    copied = [
        source
        for line in dockerfile.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
        if not source.startswith("--")
    ]
    assert copied
    assert all(any(Path(source).is_relative_to(name) for name in dagster.inputs) for source in copied)


def test_debian_and_python_packages_of_a_project_are_installed_in_stages_apart() -> None:
    """So that neither kind is installed again for a new one of the other."""
    stages = re.split(r"^FROM ", (ROOT / "docker/dagster/Dockerfile").read_text(), flags=re.MULTILINE)

    (python,) = (stage for stage in stages if "dagster_stack.packages.install" in stage)
    (debian,) = (stage for stage in stages if "debian.txt" in stage)

    assert re.findall(r"--from=wanted (\S+)", python) == ["/wanted/python"]
    assert "/uv/" not in debian


@pytest.mark.parametrize("dockerfile", sorted((ROOT / "docker").glob("*/Dockerfile")), ids=str)
def test_every_file_of_the_checkout_gets_a_mode_of_the_image(dockerfile: Path) -> None:
    """Under `umask 077` a checkout's own modes close files to the image's user; some file systems have none."""
    copies = [line for line in dockerfile.read_text().splitlines() if line.startswith(("COPY", "ADD"))]

    for line in copies:
        assert "--from=" in line or "--chmod=0755 " in line or "--chmod=0644 " in line, line


def test_scripts_of_images_have_unix_line_ends_whatever_git_is_told() -> None:
    assert "* text=auto eol=lf" in (ROOT / ".gitattributes").read_text().splitlines()
    assert not [path for path in (ROOT / "docker").glob("*/start") if b"\r" in path.read_bytes()]


def test_each_copy_of_the_stack_has_images_of_its_own(env: Path) -> None:
    """By a shared name, what one checkout builds is what the next command of another one swaps its stores for."""
    env.write_text("COMPOSE_PROJECT_NAME=second\n")

    names = {image.name for image in images.images()}
    composed = set(re.findall(r"^ +image: (?!\$\{GRAFANA)(.*)$", compose_files.texts(), re.MULTILINE))

    assert names == {name.replace("${COMPOSE_PROJECT_NAME}", "second") for name in composed}
    assert all(name.startswith("second/") for name in names)


def test_what_another_copy_has_built_from_the_same_is_not_built_again(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given nothing of this copy's, and of another's the image of Postgres from the same files
    env.write_text("BASE_IMAGE=base\nCOMPOSE_PROFILES=postgres,rabbitmq\nCOMPOSE_PROJECT_NAME=second\n")
    FakeDocker(images=("base",)).install(programs)
    postgres = images.of_service("postgres")
    monkeypatch.setattr(images, "built_from", lambda _: "")
    monkeypatch.setattr(
        images,
        "ask",
        lambda *line: (
            "sha256:later\nsha256:earlier"
            if line[-1].endswith(f".inputs={postgres.digest(base_image.image_id('base'))}")
            else ""
        ),
    )
    monkeypatch.setattr(images, "write_certificates", lambda: None)
    monkeypatch.setattr(user_project, "stage", lambda: None)

    # When the images are ensured
    images.ensure()

    # Then the later one has this copy's name too, and the others are built
    assert [call for call in calls(programs) if call.startswith("tag")] == [
        "tag sha256:later second/postgres"
    ]
    builds = [call.rpartition(" ")[2] for call in calls(programs) if " build " in call]
    assert sorted(builds) == ["init", "rabbitmq"]
    assert "not built again: second/postgres" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "left_out"),
    [
        ("POSTGRES_HOST=db.example", "postgres"),
        ("RABBITMQ_HOST=mq.example", "rabbitmq"),
        ("S3_ENDPOINT_URL=https://s3.example", "minio"),
    ],
)
def test_the_image_of_an_outside_store_is_not_built(env: Path, setting: str, left_out: str) -> None:
    env.write_text(f"COMPOSE_PROFILES=postgres, rabbitmq,minio\n{setting}\n")

    services = {image.service for image in images.wanted()}

    assert services == {"postgres", "rabbitmq", "minio", "init"} - {left_out}


def test_only_stale_images_are_built_and_the_others_named(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given three images that are as they were, and Dagster's that is not
    env.write_text("BASE_IMAGE=base\nCOMPOSE_PROFILES=postgres,rabbitmq,minio\n")
    FakeDocker(images=("base",)).install(programs)
    digests = {image: image.digest(base_image.image_id("base")) for image in images.images()}
    monkeypatch.setattr(images, "built_from", lambda image: "" if image.service == "init" else digests[image])
    monkeypatch.setattr(images, "write_certificates", lambda: None)
    monkeypatch.setattr(user_project, "stage", lambda: None)

    # When the images are ensured
    images.ensure()

    # Then that one is built, and nothing else
    builds = [call for call in calls(programs) if " build " in call]
    assert len(builds) == 1
    assert builds[0].endswith("build init")
    assert (
        "not built again: dagster-celery-stack/postgres, dagster-celery-stack/rabbitmq"
        in capsys.readouterr().out
    )


def test_an_image_that_is_behind_debian_is_built_anew_though_its_inputs_are_as_they_were(
    programs: Path, env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a stack whose images are as they were, one of them with a newer package in Debian
    env.write_text("BASE_IMAGE=base\nCOMPOSE_PROFILES=postgres,rabbitmq,minio\n")
    FakeDocker(images=("base",)).install(programs)
    digests = {image: image.digest(base_image.image_id("base")) for image in images.images()}
    monkeypatch.setattr(images, "built_from", digests.get)
    monkeypatch.setattr(images, "write_certificates", lambda: None)
    monkeypatch.setattr(user_project, "stage", lambda: None)

    # When the images are ensured
    images.ensure({"dagster-celery-stack/rabbitmq"})

    # Then that one is built without the layers of before, and no other
    builds = [call for call in calls(programs) if " build " in call]
    assert len(builds) == 1
    assert builds[0].endswith("build --no-cache rabbitmq")


@pytest.mark.parametrize("dockerfile", sorted((ROOT / "docker").glob("*/Dockerfile")), ids=str)
def test_each_image_has_debians_newest_packages_of_the_day_on_which_it_is_built(dockerfile: Path) -> None:
    """A base image that was pulled may be weeks behind its archive; `make upgrade` asks what `apt-get upgrade` would do."""
    text = dockerfile.read_text()
    first = text[text.index("\nFROM ${BASE_IMAGE}") :].replace("FROM ${BASE_IMAGE} AS build", "")
    (stage,) = re.findall(
        r"^FROM \$\{BASE_IMAGE\}(?: AS python)?\n(.*?)(?=^FROM|\Z)", first, re.MULTILINE | re.DOTALL
    )

    assert re.search(r"apt-get update \\\n && apt-get upgrade -y \\\n", stage)


def test_names_that_had_no_image_are_given_to_none(programs: Path) -> None:
    FakeDocker().install(programs)

    with (
        pytest.raises(Failure, match=r"wrong\n\n  All is as it was"),
        images.kept_on_failure("All is as it was", {"one": "sha256:1", "two": ""}),
    ):
        raise Failure("wrong")

    assert [call for call in calls(programs) if call.startswith("tag")] == ["tag sha256:1 one"]


def test_the_digest_reaches_the_build_as_the_variable_that_compose_makes_a_label_of() -> None:
    text = compose_files.texts()

    for image in images.images():
        assert f'{images.INPUTS_LABEL}: "${{{image.variable}:-}}"' in text


@pytest.mark.parametrize(
    ("line", "step"),
    [
        (
            "#12 [minio build 3/4] RUN go install github.com/minio/minio",
            "[build 3/4] RUN go install github.com/minio/minio",
        ),
        ("#7 [2/5] RUN apt-get update", "[2/5] RUN apt-get update"),
        ("#7 [init packages 4/4] RUN pip", "[packages 4/4] RUN pip"),
        ("#7 DONE 3.2s", None),
        ("#12 4.123 go: downloading x", None),
        ("", None),
    ],
)
def test_the_step_under_way_is_read_from_buildkits_output(line: str, step: str | None) -> None:
    assert build_step(line) == step


def test_the_hosts_certificates_are_collected_for_the_builds(tmp_path: Path) -> None:
    # Given two certificates (one without a last line end, one in a sub-folder) and what is none
    folder, file = tmp_path / "certificates", tmp_path / "build" / "extra-ca.crt"
    (folder / "company").mkdir(parents=True)
    (folder / "a.crt").write_text(CERTIFICATE.replace("MIIB", "AAAA").rstrip("\n"))
    (folder / "company" / "b.crt").write_text(CERTIFICATE)
    (folder / "binary.crt").write_bytes(b"\x30\x82\xff")
    (folder / "broken.crt").symlink_to(folder / "gone")
    (folder / "notes.txt").write_text("no certificate")

    # When they are collected
    write_certificates(folder, file)

    # Then the file holds both, whole and one after the other, and nothing else
    assert file.read_text() == CERTIFICATE.replace("MIIB", "AAAA") + CERTIFICATE


@pytest.mark.parametrize("exists", [True, False])
def test_without_certificates_there_is_an_empty_file(tmp_path: Path, exists: bool) -> None:
    folder, file = tmp_path / "certificates", tmp_path / "build" / "extra-ca.crt"
    if exists:
        folder.mkdir()

    write_certificates(folder, file)

    assert file.read_bytes() == b""


def test_the_same_certificates_are_not_written_again_and_others_are(tmp_path: Path) -> None:
    folder, file = tmp_path, tmp_path / "extra-ca"
    (folder / "a.crt").write_text(CERTIFICATE)
    write_certificates(folder, file)
    before = file.stat().st_mtime_ns

    write_certificates(folder, file)
    assert file.stat().st_mtime_ns == before

    (folder / "a.crt").unlink()
    write_certificates(folder, file)
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    ("log", "named"),
    [
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] …", "ca-certificates"),
        (
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
            "ca-certificates",
        ),
        ("write /var/lib/docker/tmp: no space left on device", "disk is full"),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407", "user:password@"),
        ("Err:1 http://apt.example trixie InRelease  407  Proxy Authentication Required", "login"),
        ("Temporary failure resolving 'packages.example'", "name it: HTTP_PROXY"),
        ("dial tcp: lookup modules.example: no such host", "name it: HTTP_PROXY"),
        ("E: Unable to locate package ffmpge", "no package ffmpge, which packages.txt"),
        ("E: Package 'libfoo1' has no installation candidate", "no package libfoo1, which packages.txt"),
    ],
)
def test_a_failed_build_names_the_cure_where_its_log_says_why(log: str, named: str) -> None:
    assert named in images.cure(log)


def test_a_failed_build_shows_what_says_why_and_not_its_last_lines() -> None:
    noise = "\n".join(f"#9 {second}.0 note: line {second}" for second in range(60))

    said = images.reason(f"#9 0.5 E: Unable to locate package ffmpge\n{noise}\n")

    assert said.startswith("E: Unable to locate package ffmpge\n\nThe image's Debian has no package ffmpge")
    assert "note: line" not in said


def test_where_nothing_says_why_a_failed_builds_last_lines_are_shown() -> None:
    assert images.reason("one\ntwo\n") == "one\ntwo"


def test_a_failed_build_of_another_reason_gets_no_advice() -> None:
    assert images.cure("error: invalid command 'bdist_wheel'") == ""
