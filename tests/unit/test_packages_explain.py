"""From what uv, apt and BuildKit print to the lines that say what failed."""

import json
from pathlib import Path

import pytest

from dagster_stack.packages import explain, network

BUILD = """\
#17 [init project-packages 3/3] RUN --mount=type=secret,id=extra_ca …
#17 1.203 Get:1 http://deb.example trixie InRelease
#17 9.871 ✗ requirements.txt asks for other versions than the platform has, and one process can't have both:
#17 9.871   dagster==1.12: the platform has dagster 1.13.27
#17 9.903 more output that comes late
#17 ERROR: process "/bin/sh -c if …" did not complete successfully: exit code: 1
------
 > [init project-packages 3/3] RUN --mount=type=secret,id=extra_ca …:
9.871 ✗ requirements.txt asks for other versions than the platform has, and one process can't have both:
9.871   dagster==1.12: the platform has dagster 1.13.27
------
failed to solve: process "/bin/sh -c if …" did not complete successfully: exit code: 1
"""


def test_our_own_message_is_all_that_is_shown() -> None:
    assert explain.excerpt(BUILD) == (
        "requirements.txt asks for other versions than the platform has, and one process can't have both:\n"
        "  dagster==1.12: the platform has dagster 1.13.27"
    )


def test_of_another_programs_output_the_lines_that_say_what_failed_are_shown_once() -> None:
    lines = [f"#9 {second}.1 Collecting package {second}" for second in range(50)]
    log = "\n".join(
        [
            *lines,
            "#9 51.0 E: Unable to locate package ffmpge",
            *[f"#9 {second}.2 note: much that says nothing" for second in range(30)],
            '#9 ERROR: process "/bin/sh -c apt" did not complete successfully: exit code: 100',
            "51.0 E: Unable to locate package ffmpge",
        ]
    )

    assert explain.excerpt(log) == "E: Unable to locate package ffmpge"


@pytest.mark.parametrize(
    "log", ["", "#1 0.1 all is well", "ERROR: x did not complete successfully: exit code: 1"]
)
def test_where_nothing_says_it_there_is_no_excerpt(log: str) -> None:
    assert explain.excerpt(log) == ""


@pytest.mark.parametrize(
    "beginning",
    [
        "error: No solution found when resolving dependencies\n  cause: ",
        "  × No solution found when resolving dependencies:\n  ╰─▶ ",
        "  × No solution found when resolving dependencies for split (python_full_version >= '3.12'):\n  ╰─▶ ",
    ],
)
def test_uvs_explanation_becomes_a_text_and_is_cut_at_a_sentence(beginning: str) -> None:
    output = (
        f"{beginning}Because plot==3.1 depends on frame>=2 and you require frame==1.5,\n"
        "      we can conclude that plot==3.1 cannot be used.\n"
        f"      And because {'x' * 600} and so on.\n      And because of more, all is unsatisfiable.\n"
    )

    text = explain.explanation(output)

    assert text == (
        "Because plot==3.1 depends on frame>=2 and you require frame==1.5, we can conclude that plot==3.1 cannot be used. …"
    )


# --- the build's network -------------------------------------------------------------------------------


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(network, "SECRETS", tmp_path)
    monkeypatch.setattr(network, "NETRC", tmp_path / "netrc")
    monkeypatch.setattr(network, "CERTIFICATES", tmp_path / "ca.pem")
    monkeypatch.setattr(network, "SYSTEM_CERTIFICATES", tmp_path / "system.pem")
    (tmp_path / "system.pem").write_text("system\n")
    return tmp_path


def test_without_secrets_the_network_is_as_it_is(secrets: Path) -> None:
    environment = network.environment()

    assert "UV_DEFAULT_INDEX" not in environment
    assert (secrets / "ca.pem").read_text() == "system\n"
    assert network.hidden("a token") == "a token"


def test_pips_variables_count_for_uv_and_certificates_are_added(secrets: Path) -> None:
    (secrets / "extra_ca").write_text("own\n")
    (secrets / "package_index").write_text(
        json.dumps(
            {
                "PIP_INDEX_URL": "https://index.example/simple",
                "PIP_EXTRA_INDEX_URL": "https://more.example/simple",
            }
        )
    )

    environment = network.environment()

    assert environment["UV_DEFAULT_INDEX"] == environment["PIP_INDEX_URL"] == "https://index.example/simple"
    assert environment["UV_EXTRA_INDEX_URL"] == "https://more.example/simple"
    assert Path(environment["SSL_CERT_FILE"]).read_text() == "system\nown\n"


def test_no_password_of_the_secrets_is_printed(secrets: Path) -> None:
    (secrets / "package_index").write_text(
        json.dumps(
            {
                "PIP_EXTRA_INDEX_URL": "https://me:hush-1@index.example/simple https://token-2@more.example/simple",
                "UV_INDEX_PRIVATE_USERNAME": "me",
                "UV_INDEX_PRIVATE_PASSWORD": "hush-3",
            }
        )
    )
    (secrets / "netrc").write_text("machine git.example\nlogin me\npassword hush-4\n")

    text = network.hidden("https://me:hush-1@index https://token-2@more hush-3 and hush-4 of me")

    assert not any(each in text for each in ("hush", "token-2"))
    assert text.endswith("of me")
