"""`make clean`: the stack and all its data, gone for good."""

import os

from scripts import (
    backups,
    certificates,
    compose,
    data_folder,
    engine,
    env_file,
    turns,
    unfinished,
    variables,
)
from scripts import project as user_project
from scripts.console import attended, confirm, done, main, run_logged, say
from scripts.hosts import host, services

#: Where an outside store is, whose data stays.
OUTSIDE = {"Postgres": "POSTGRES_HOST", "S3": "S3_ENDPOINT_URL"}


def clean() -> None:
    """Remove containers and volumes of this project; on a terminal only after a yes, or with FORCE=1."""
    compose.require_env_file()
    project = compose.project()
    asks = attended() and not os.environ.get("FORCE")
    folder = env_file.settings().get("BACKUP_DIR")
    what = (
        "runs, logs, data and backups on this host"
        if backups.is_on() and not folder
        else "runs, logs and data"
    )
    outside = [
        f"{store} at {variable}" for store, variable in OUTSIDE.items() if env_file.settings().get(variable)
    ]
    stays = f"{' and '.join(outside)} {'keep their' if outside[1:] else 'keeps its'} data" if outside else ""
    question = (
        f"all data of {project} on this host? {stays}. There" if stays else f"all {what} of {project}? There"
    )
    if asks and not confirm(f"Delete {question} is no way back."):
        say("  nothing was deleted")
        return
    engine.ensure()
    services.stop_all(with_data=True)
    for each in host.joined():
        each.file.unlink()
    env_file.set_values({host.SETTING: "", **dict.fromkeys(services.IN_ALL.values(), "")})
    run_logged(
        f"Removing {project}",
        [
            *compose.compose(),
            "--progress",
            "plain",
            "--profile",
            "*",
            "down",
            "--volumes",
            "--remove-orphans",
        ],
        # Where `make up` ended before it had a base image there is none to name, and none is needed.
        environment={"BASE_IMAGE": env_file.settings().get("BASE_IMAGE") or "none"},
    )
    # What services had under other settings, such as LOGIN: Compose does not know of it now.
    for kind in ("volume", "network"):
        left = engine.ask(kind, "ls", "--quiet", "--filter", f"label=com.docker.compose.project={project}")
        if left:
            engine.ask(kind, "rm", *left.split())
    user_project.remove(user_project.context())
    variables.file().unlink(missing_ok=True)
    certificates.file().unlink(missing_ok=True)
    unfinished.note("")
    backups.known().unlink(missing_ok=True)
    kept = ["images", env_file.env_path().name]
    kept += [
        f"{path}, which is this host's,"
        for path in (env_file.settings().get(data_folder.VARIABLE), folder)
        if path
    ]
    gone = f"all data on this host is gone; {stays}" if stays else "all data is gone"
    begins = "goes on with them" if stays else "starts afresh"
    done(f"{gone}; {' and '.join(kept)} are kept, `make up` {begins}")


if __name__ == "__main__":
    main(turns.alone(clean))
