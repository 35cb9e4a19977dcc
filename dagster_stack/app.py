"""The Celery app of every worker: the target of `celery -A` and `dagster-celery worker start -A`."""

import importlib
import importlib.util

from dagster_stack.logs.libraries import use_in_celery
from dagster_stack.messaging.app_factory import make_app
from dagster_stack.pool import replacement
from dagster_stack.services.health import Watchdog
from dagster_stack.settings import CeleryConfig, Settings
from dagster_stack.tasks import register_tasks
from dagster_stack.worker import (
    consumer,
    request,
    respite,
    revocation,
    roll_call,
    shutdown,
    subscription,
    warm_up,
)

#: The module that `dagster-celery worker start -y` writes and puts on the path.
STARTED_WITH = "dagster_celery_config"

settings = Settings.from_environment()
app = make_app(CeleryConfig.load(settings.celery_yaml), settings)
if importlib.util.find_spec(STARTED_WITH):
    # Above what stands already: a broker or backend given to the app would win over a configuration object.
    started_with = vars(importlib.import_module(STARTED_WITH))
    app.conf.update({name: value for name, value in started_with.items() if not name.startswith("_")})

use_in_celery()
register_tasks(app)
app.steps["worker"].add(Watchdog)
consumer.install(app)
subscription.install(app)
replacement.install(app)
request.install(app)
respite.install()
revocation.install()
roll_call.install()
shutdown.install()
warm_up.install()
