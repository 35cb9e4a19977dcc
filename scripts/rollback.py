"""`make rollback [TO=code]`: a version of the code that is kept, on a stack that runs; no run fails and no step is lost.

It swaps as `make deploy` does. Settings are those of `.env`, services those of this checkout. Killed at any point, the same
command again ends where the first one would have.
"""

import os
import signal

from scripts import (
    certificates,
    code_check,
    code_versions,
    compose,
    daemons,
    deploy,
    engine,
    env_file,
    images,
    schema,
    turns,
    up,
)
from scripts.code_versions import Version
from scripts.console import Failure, attended, confirm, done, main, say, warn
from scripts.hosts import services as hosts
from scripts.hosts.host import joined, number

#: By which one of several daemons leads, in an image.
LEADERSHIP = "/opt/dagster/dagster_stack/services/leadership.py"
UNTOUCHED = "Nothing was rolled back: the stack goes on as it was."
ANY_OTHER = "\n\n  Any other one: check it out with git, then `make deploy`."


def rollback() -> None:
    compose.require_env_file()
    how, minutes = deploy.wanted()
    # `kill` ends it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    up.prepare()
    code_versions.keep_running()
    target = wanted(os.environ.get("TO", ""))
    with images.kept_on_failure(UNTOUCHED):
        images.give_back(target.image_id)
        certificates.issue()
        hosts.bring()
        if up.is_up():
            up.close_former_logins()
            done(f"all services run with {target.described}: nothing to roll back")
            if code_versions.rolled_back():
                say(f"  {code_versions.AFTERWARDS}")
            return
        old = deploy.running_code()
        agree(target, old, deploy.WAYS[how].format(minutes=minutes))
        require_lease(target)
        code_check.check()
        require_schema()
        with deploy.queue_held():
            settle_runs(how, minutes)
            # From here on a repetition completes this one.
            code_versions.give_tag(target.image_id, code_versions.ROLLED_BACK)
            code_versions.keep(target.image_id, target.code)
    deploy.swap()
    up.close_former_logins()
    done(f"{deploy.change(old, target.code)}: rolled back")


def wanted(code: str) -> Version:
    """The version to go to; raises Failure that names those that are kept."""
    kept, running = code_versions.kept(), set(code_versions.running())
    listed = "".join(f"\n  {each.described}" for each in kept) or " none"
    if code:
        found = [each for each in kept if each.code.startswith(code)]
        if len(found) != 1:
            how_many = "more than one version begins" if found else "no version that is kept begins"
            raise Failure(f"TO={code}: {how_many} so. Kept are:{listed}{ANY_OTHER}")
        return found[0]
    if back := [each for each in kept if each.image_id == code_versions.rolled_back()]:
        # What was begun is completed; what is complete stays.
        return back[0]
    places = [place for place, each in enumerate(kept) if each.image_id in running]
    before = kept[places[0] + 1 :] if places else kept[1:]
    if not before:
        raise Failure(f"No version before the one that runs is kept. Kept are:{listed}{ANY_OTHER}")
    return before[0]


def agree(target: Version, old: str, way: str) -> None:
    """Say what will be done; raises Failure where somebody on a terminal does not want it."""
    say(f"Rolling back to {target.described}, in place of {old or 'none'}")
    say(f"  {way} Queued runs start with that code. Database and bucket stay as they are.")
    say("  `make deploy` brings the checkout's code again.")
    if attended() and not os.environ.get("FORCE") and not confirm("Roll back?"):
        raise Failure("Not wanted.")


def require_lease(target: Version) -> None:
    """Raises Failure where there are to be several daemons, and those of this version all launch what schedules ask for."""
    look = ("run", "--rm", "--network", "none", "--entrypoint", "ls", target.image_id, LEADERSHIP)
    elsewhere = "".join(f", DAEMONS=0 in {each.file.name}" for each in joined() if number(each, "DAEMONS", 0))
    if daemons.wanted() > 1 and engine.ask(*look) != LEADERSHIP:
        raise Failure(
            f"Daemons of code {target.code} know no lease, so two would each launch what schedules and sensors ask for. Set"
            f" DAEMONS=1 in {env_file.env_path().name}{elsewhere} and `make up`, then roll back."
        )


def require_schema() -> None:
    """Raises Failure where the database's schema is not this older code's."""
    if migration := schema.required(up.start_postgres):
        raise Failure(
            f"The database's schema ({migration.found}) is older than this version's ({migration.wanted}): `make deploy` from"
            " a checkout of its release migrates it."
        )


def settle_runs(how: str, minutes: int) -> None:
    """As before a deployment; but where Dagit is what is broken, runs under way are handed over."""
    running = {each.service for each in compose.containers() if each.state == "running"}
    if how == "wait" and "runner" in running and "dagit" not in running:
        warn(
            "Dagit is not running, so runs under way can't be waited for: they go on with the code of before"
        )
    else:
        deploy.settle_runs(how, minutes)


if __name__ == "__main__":
    main(turns.alone(rollback))
