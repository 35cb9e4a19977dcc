"""Whether Dagit could load the user's code: a stack can be healthy while `pipelines` can't be imported."""

import json
import time
import urllib.request

from scripts.console import Failure

#: Seconds that Dagit may take to load the code after it answers.
LOAD_TIMEOUT_SECS = 60

#: Past the proxy of a company's network, which knows nothing of this host's ports.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

QUERY = """
{ workspaceOrError { __typename
  ... on PythonError { message }
  ... on Workspace { locationEntries { name locationOrLoadError { __typename ... on PythonError { message } } } }
} }
"""


def check(dagit_url: str, opener: urllib.request.OpenerDirector = DIRECTLY) -> None:
    """Raises Failure with the error of each code location that can't be loaded."""
    errors = load_errors(workspace(dagit_url, opener))
    if errors:
        raise Failure(
            "The stack is up, but Dagit can't load your code:\n\n"
            + "\n".join(f"{name}: {message.strip()}" for name, message in errors.items())
            + "\n\nCorrect it and run `make up` again."
        )


def workspace(dagit_url: str, opener: urllib.request.OpenerDirector) -> dict:
    """What Dagit says of its code locations, once it has loaded them or given up."""
    request = urllib.request.Request(
        f"{dagit_url}/graphql",
        data=json.dumps({"query": QUERY}).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + LOAD_TIMEOUT_SECS
    while True:
        try:
            with opener.open(request, timeout=LOAD_TIMEOUT_SECS) as response:
                answer: dict = json.load(response)["data"]["workspaceOrError"]
        except OSError as error:
            raise Failure(
                f"Dagit at {dagit_url} does not answer: {error}. See `docker compose logs dagit`."
            ) from error
        loading = any(entry["locationOrLoadError"] is None for entry in answer.get("locationEntries", []))
        if not loading or time.monotonic() > deadline:
            return answer
        time.sleep(0.5)


def load_errors(answer: dict) -> dict[str, str]:
    """The error of each location that could not be loaded, by its name."""
    if answer["__typename"] == "PythonError":
        return {"workspace.yaml": answer["message"]}
    return {
        entry["name"]: location["message"]
        for entry in answer["locationEntries"]
        if (location := entry["locationOrLoadError"]) and location["__typename"] == "PythonError"
    }
