"""dbt projects: which ones are found, what their manifests are made with, and in which words that fails."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dagster_stack import project as module
from dagster_stack.project import check, dbt, manifests
from dagster_stack.project.discovery import discover
from scripts import dbt_targets, variables
from scripts import project as user_project
from tests.unit.test_project_discovery import project

DBT_PROJECT = 'name: shop\nversion: "1.0"\nprofile: shop\n'
PROFILES = """\
shop:
  target: "{{ env_var('SHOP_TARGET', 'prod') }}"
  outputs:
    dev:
      type: duckdb
      path: shop.duckdb
    prod:
      type: postgres
      host: "{{ env_var('SHOP_HOST', 'localhost') }}"
      port: "{{ env_var('SHOP_PORT') | as_number }}"
      password: "{{ env_var('DBT_ENV_SECRET_SHOP') }}"
"""
#: In the place of dbt: it writes down what it is called with, and a manifest.
DBT = """\
#!{python}
import json, os, pathlib, sys
if {output!r}:
    sys.exit({output!r})
target = pathlib.Path(os.environ["DBT_TARGET_PATH"])
if "parse" in sys.argv:
    (target / "manifest.json").write_text(json.dumps({{"args": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}))
else:
    pathlib.Path("dbt_packages/utils").mkdir(parents=True)
"""


class Dbt:
    """A user's project with dbt in it, and a dbt that answers as it is told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._program = folder / "mine", folder / "dbt"
        monkeypatch.setattr(manifests, "program", lambda: self._program)
        monkeypatch.setattr(manifests, "BAKED", folder / "kept")
        self.has(**{"shop/dbt_project.yml": DBT_PROJECT, "shop/profiles.yml": PROFILES})
        self.answers("")

    def has(self, **files: str) -> None:
        project(self.root, files)

    def answers(self, output: str) -> None:
        """Let dbt fail with a text, or work."""
        self._program.write_text(DBT.format(python=sys.executable, output=output))
        self._program.chmod(0o755)

    def lacks_dbt(self) -> None:
        self._program.unlink()

    def built(self) -> list[str]:
        """What is said after the image's build, which is this: what dbt reads, then the whole project."""
        staged = self.root.rename(self.root.with_name("staged"))
        with unchanged_environment():
            dbt.collect(staged, self.root)
        with unchanged_environment():
            manifests.make_all(self.root, manifests.BAKED)
        shutil.copytree(staged, self.root, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(staged)
        manifests.lay(self.root, manifests.BAKED)
        return list(manifests.warnings(self.root))

    def chosen_by_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the host puts beside the project, which is staged where it is."""
        monkeypatch.setattr(user_project, "folder", lambda: self.root)
        monkeypatch.setattr(user_project, "context", lambda: self.root.parent)
        dbt_targets.write()

    def manifest(self, name: str = "shop") -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / name / "target/manifest.json").read_text())
        return content


@contextmanager
def unchanged_environment() -> Iterator[None]:
    """Each step of a build is a process of its own."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dbt:
    return Dbt(tmp_path, monkeypatch)


def test_an_edit_of_other_code_changes_nothing_of_what_dbt_is_given(mine: Dbt, tmp_path: Path) -> None:
    # Given a project at the root, with a model in Python, and models that are linked to
    mine.has(
        **{
            "dbt_project.yml": DBT_PROJECT,
            "models/a.sql": "select 1",
            "models/b.py": "def model(dbt, session):\n    pass\n",
            "defs.py": "defs = Definitions()",
            "src/mine/x.py": "",
            "elsewhere/c.sql": "select 2",
        }
    )
    (mine.root / "models/linked").symlink_to("../elsewhere")
    (mine.root / "models/round").symlink_to("..")
    (mine.root / "models/gone.py").symlink_to("nowhere")

    dbt.collect(mine.root, tmp_path / "out")

    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert found == {
        ".dbt-choices.json",
        "dbt_project.yml",
        "elsewhere/c.sql",
        "models/a.sql",
        "models/b.py",
        "models/gone.py",
        "shop/dbt_project.yml",
        "shop/profiles.yml",
    }
    assert (tmp_path / "out/models/linked").readlink() == Path("../elsewhere")


def test_every_dbt_project_is_found_and_no_package_of_one(mine: Dbt) -> None:
    for name in ("shop/dbt_packages/utils", "shop/target", ".venv/lib", "deep/er", "env/x"):
        mine.has(**{f"{name}/dbt_project.yml": DBT_PROJECT})
    mine.has(**{"env/pyvenv.cfg": ""})

    assert [each.name for each in dbt.find(mine.root)] == ["mine/deep/er", "mine/shop"]


def test_the_manifest_is_made_without_any_value_of_the_projects_variables(mine: Dbt) -> None:
    # Given a profile and a model that ask for variables, of which no build has one
    mine.has(**{"shop/models/a.sql": "select {{ env_var('SHOP_LIMIT') }}, {{ env_var('SHOP_X', 'x') }}"})
    # And a package of one's own, which dbt links to
    mine.has(**{"shared/dbt_project.yml": "name: s\n", "shared/macros/b.sql": "{{ env_var('SHOP_SHARED') }}"})

    # When it is made
    assert mine.built() == []

    # Then those without a default had something that is a number, too, and others their default
    environment = mine.manifest()["env"]
    assert {
        name: environment.get(name)
        for name in ("SHOP_PORT", "SHOP_LIMIT", "SHOP_HOST", "SHOP_X", "SHOP_SHARED")
    } == {
        "SHOP_PORT": "1",
        "SHOP_SHARED": "1",
        "SHOP_LIMIT": "1",
        "SHOP_HOST": None,
        "SHOP_X": None,
    }
    # dbt hides the value of such a variable in all that it prints.
    assert environment["DBT_ENV_SECRET_SHOP"] == manifests.SECRET_PLACEHOLDER
    assert mine.manifest()["cwd"] == str(mine.root / "shop")
    # And nothing else of dbt's is left in the project
    assert [path.name for path in (mine.root / "shop/target").iterdir()] == ["manifest.json"]


def test_a_profile_elsewhere_in_the_project_is_found(mine: Dbt) -> None:
    (mine.root / "shop/profiles.yml").rename(mine.root / "profiles.yml")

    assert mine.built() == []
    assert mine.manifest()["env"]["DBT_PROFILES_DIR"] == str(mine.root)


def test_a_target_that_only_a_variable_names_is_the_first_one_in_the_build(mine: Dbt) -> None:
    mine.has(**{"shop/profiles.yml": PROFILES.replace("'SHOP_TARGET', 'prod'", "'SHOP_TARGET'")})

    assert mine.built() == []
    assert mine.manifest()["args"][-2:] == ["--target", "dev"]


CODE = """
import os
from pathlib import Path

from dagster import EnvVar
from dagster_dbt import DbtCliResource, DbtProject

FOLDER = Path(__file__).parent / "{folder}"
{before}
shop = DbtProject(FOLDER, profiles_dir=FOLDER{target})
"""


@pytest.mark.parametrize(
    ("files", "env", "target"),
    [
        ({"defs.py": CODE.format(folder="shop", before="", target=", target='dev'")}, "", "dev"),
        ({"defs.py": CODE.format(folder="shop", before="T = os.getenv('T', 'dev')", target=", target=T")}, "", "dev"),
        ({"defs.py": CODE.format(folder="shop", before="", target=", target=os.environ['T']")}, "T=dev", "dev"),
        ({"defs.py": CODE.format(folder="shop", before="DbtCliResource(FOLDER, target=EnvVar('T'))", target="")}, "T='dev' # x", "dev"),
        ({"defs.py": CODE.format(folder="other", before="", target=", target='dev'")}, "", ""),
        ({"defs.py": CODE.format(folder="shop", before="", target=", target='gone'")}, "", ""),
        ({"defs.py": CODE.format(folder="shop", before="DbtProject(x, target='prod')", target=", target='dev'")}, "", "dev"),
        ({"defs/a/defs.yaml": "type: dagster_dbt.DbtProjectComponent\nattributes:\n  project:\n    project_dir: '{{ project_root }}/shop'\n    target: dev\n"}, "", "dev"),
        ({}, "DBT_TARGET=dev", "dev"),
        ({}, "export SHOP_TARGET=dev", "env"),
        ({}, "SHOP_TARGET=two words", ""),
        ({}, "SHOP_HOST=dev", ""),
    ],
)  # fmt: skip
def test_the_manifest_is_made_for_the_target_that_runs_will_have(
    mine: Dbt, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], env: str, target: str
) -> None:
    """Which models there are may hang on it. Of the project's variables the build has those that choose one, and no other."""
    # Given two dbt projects, and one's target as the code, a component or the project's .env names it
    mine.has(**{"other/dbt_project.yml": "name: other\n", ".env": f"{env}\n", **files})
    monkeypatch.setattr(variables, "sources", lambda: [mine.root / ".env"])

    # When the image is built
    mine.chosen_by_host(monkeypatch)
    assert mine.built() == []

    # Then dbt gets that target: as an argument, or by the variable that profiles.yml asks for
    arguments, environment = mine.manifest()["args"], mine.manifest()["env"]
    assert arguments[arguments.index("parse") + 1 :] == (
        ["--target", target] if target not in ("", "env") else []
    )
    assert environment.get("SHOP_TARGET") == ("dev" if target == "env" else None)
    assert "SHOP_HOST" not in environment
    assert not (mine.root / dbt.CHOICES).exists()


def test_packages_are_installed_unless_the_project_brings_them(mine: Dbt) -> None:
    mine.has(**{"shop/packages.yml": "packages: []\n"})

    assert mine.built() == []
    assert (mine.root / "shop/dbt_packages/utils").is_dir()
    # A second call of `dbt deps` would fail: the folder is there.
    assert mine.built() == []


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "08:00:00  Encountered an error:\nRuntime Error\n  Could not find adapter type postgres!",
            "dbt-postgres is missing: add it to the project's pyproject.toml",
        ),
        (
            "Compilation Error\n  Model 'a' depends on a node named 'b' which was not found",
            "dbt parse says: Compilation Error Model 'a' depends on a node named 'b' which was not found.",
        ),
    ],
)
def test_what_dbt_can_not_parse_is_said_with_its_place_and_stops_no_build(
    mine: Dbt, output: str, said: str
) -> None:
    mine.answers(output)

    (sentence,) = mine.built()

    assert sentence.startswith("mine/shop/dbt_project.yml: no target/manifest.json")
    assert said in sentence


@pytest.mark.parametrize(
    ("packages", "output", "said"),
    [
        ("- git: https://x/y.git", "FileNotFoundError: No such file or directory: 'git'", "`git` into packages.txt"),
        ("- git: https://{{ env_var('DBT_ENV_SECRET_T') }}@x/y.git", "fatal: unable to access", "NETRC in .env"),
    ],
)  # fmt: skip
def test_packages_that_do_not_come_are_said_with_the_cure(
    mine: Dbt, packages: str, output: str, said: str
) -> None:
    mine.has(**{"shop/packages.yml": f"packages:\n  {packages}\n"})
    mine.answers(output)

    assert said in mine.built()[0]


def test_packages_that_can_not_be_reached_end_the_build_which_would_be_kept_without_a_manifest(
    mine: Dbt, capsys: pytest.CaptureFixture[str]
) -> None:
    """Docker makes no layer anew for a network that has come back."""
    mine.has(**{"shop/packages.yml": "packages:\n  - package: a/b\n"})
    mine.answers("Traceback\nConnectionError: Failed to resolve 'hub'")

    with pytest.raises(
        manifests.Unreached, match=r"mine/shop/dbt_project.yml: no target.*let git list dbt_packages/"
    ):
        mine.built()

    # And `make dev` goes on, as `dg dev` would
    manifests.make_absent(mine.root)
    assert "let git list dbt_packages/" in capsys.readouterr().err


def test_a_profile_in_the_home_folder_is_said_with_the_cure(mine: Dbt) -> None:
    (mine.root / "shop/profiles.yml").unlink()

    (sentence,) = mine.built()

    assert "no profiles.yml in the image has its profile 'shop'. One in ~/.dbt is not there" in sentence


def test_a_project_whose_packages_lack_dbt_is_told_which_ones(mine: Dbt) -> None:
    mine.lacks_dbt()

    assert "add dagster-dbt and dbt-postgres to its pyproject.toml" in mine.built()[0]


def test_a_manifest_that_the_project_brings_stays_where_none_can_be_made(mine: Dbt) -> None:
    mine.has(**{"shop/target/manifest.json": "{}"})
    mine.answers("Runtime Error\n  no")

    assert "The one that the project brings is used" in mine.built()[0]
    assert mine.manifest() == {}


def test_a_package_of_ones_own_is_nobodys_project(mine: Dbt) -> None:
    mine.has(**{"shared/dbt_project.yml": "name: shared\n"})

    assert mine.built() == []
    assert not (mine.root / "shared/target").exists()


def test_the_embedded_mode_makes_only_what_is_absent(mine: Dbt, capsys: pytest.CaptureFixture[str]) -> None:
    mine.has(**{"shop/target/manifest.json": "{}", "other/dbt_project.yml": DBT_PROJECT})

    manifests.make_absent(mine.root)

    assert mine.manifest() == {}
    assert mine.manifest("other")["cwd"] == str(mine.root / "other")
    assert capsys.readouterr().err == ""


def test_what_was_found_is_told_in_words(mine: Dbt) -> None:
    mine.has(**{"shared/dbt_project.yml": "name: shared\n", "bare/dbt_project.yml": "profile: gone\n"})

    mine.built()

    assert manifests.described(mine.root) == {
        "mine/bare": "no adapter known, without a manifest",
        "mine/shop": "postgres, with a manifest",
    }


@pytest.mark.parametrize(
    ("target", "path", "warned"),
    [
        ("dev", "shop.duckdb", "path: ../data/shop.duckdb, which all services share"),
        ("dev", "/tmp/shop.duckdb", "on the disk of one container"),
        ("dev", "../data/shop.duckdb", ""),
        ("dev", ":memory:", ""),
        ("dev", "md:shop", ""),
        ("prod", "shop.duckdb", ""),
    ],
)
def test_the_preflight_names_a_duckdb_file_that_workers_do_not_share(
    mine: Dbt, monkeypatch: pytest.MonkeyPatch, target: str, path: str, warned: str
) -> None:
    # Given a connection to a file, and whether it is the one that is used
    monkeypatch.setenv("SHOP_TARGET", target)
    mine.has(
        **{"shop/profiles.yml": PROFILES.replace("shop.duckdb", path), "defs.py": "defs = Definitions()"}
    )

    said = " ".join(check.connections_of_dbt(discover(mine.root)))

    assert warned in said
    assert bool(said) == bool(warned)


def test_the_preflight_names_a_secret_that_is_in_the_image(mine: Dbt) -> None:
    plain = PROFILES.replace("{{ env_var('DBT_ENV_SECRET_SHOP') }}", "hush")
    mine.has(**{"shop/profiles.yml": plain, "defs.py": "defs = Definitions()"})

    (said,) = check.connections_of_dbt(discover(mine.root))

    assert said.startswith("mine/shop/profiles.yml holds a password, which is in the image now")
    assert "hush" not in said


def test_the_preflight_asks_for_the_variables_of_the_connection_that_is_used(
    mine: Dbt, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine.has(**{"defs.py": "import dagster as dg\n\ndefs = dg.Definitions()\n"})
    monkeypatch.setattr(module, "BAKED", mine.root / "absent.json")

    of_prod = check.variables(discover(mine.root), [])
    monkeypatch.setenv("SHOP_TARGET", "dev")
    of_dev = check.variables(discover(mine.root), [])

    assert of_prod == dict.fromkeys(("DBT_ENV_SECRET_SHOP", "SHOP_PORT"), "mine/shop/profiles.yml")
    assert of_dev == {}
