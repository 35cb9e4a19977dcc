"""Write the dashboards' JSON anew; the files that others made are removed."""

import json
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from scripts.console import ROOT, done
from scripts.dashboards import overview, queues, runs, stores

FOLDER = ROOT / "docker" / "grafana" / "dashboards"
DASHBOARDS = {"overview": overview, "queues": queues, "runs": runs, "stores": stores}


def texts() -> dict[str, str]:
    """Each file's content by its name."""
    return {f"{name}.json": text(module.dashboard()) for name, module in DASHBOARDS.items()}


def text(dashboard: Dashboard) -> str:
    content = json.loads(json.dumps(dashboard.build(), cls=JSONEncoder))
    for link in content["links"]:
        # In sight: the builders put links into a menu.
        del link["placement"]
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = texts()
    for stale in set(folder.glob("*.json")) - {folder / name for name in wanted}:
        stale.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")
    done(
        f"{len(wanted)} dashboards written to {folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder}"
    )


if __name__ == "__main__":
    write()
