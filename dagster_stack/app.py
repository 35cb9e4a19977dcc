"""The Celery app of every worker: the target of `celery -A` and `dagster-celery worker start -A`."""

import importlib
import importlib.util

from dagster_celery.executor import CeleryExecutor
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task, create_resume_job_task, create_task

from dagster_stack import shutdown
from dagster_stack.health import Watchdog
from dagster_stack.settings import CeleryConfig, Settings

#: The module that `dagster-celery worker start -y` writes and puts on the path.
STARTED_WITH = "dagster_celery_config"

config = CeleryConfig.load(Settings.from_environment().celery_yaml)
app = make_app(
    CeleryExecutor.for_cli(
        broker=config.broker,
        backend=config.backend,
        include=config.include,
        config_source=config.config_source,
    ).app_args()
)
if importlib.util.find_spec(STARTED_WITH):
    # Above what stands already: a broker or backend given to the app would win over a configuration object.
    started_with = vars(importlib.import_module(STARTED_WITH))
    app.conf.update({name: value for name, value in started_with.items() if not name.startswith("_")})

execute_plan = create_task(app)
execute_job = create_execute_job_task(app)
resume_job = create_resume_job_task(app)

app.steps["worker"].add(Watchdog)
shutdown.install()
