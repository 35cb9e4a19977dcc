"""Where a thing lies: one function from what Dagster calls it to the name of its object, in S3 and in local files.

Distinct things have distinct names, whatever text Dagster lets pass, and no object's name is another's folder. A text
stays as it is but for what a name can't hold, which is percent-encoded. Within `storage/` there are

    @assets/b29/orders.pickle           an asset, by the parts of its key
    @partitions/daily/2026-01-01.pickle a partition of one; of several dimensions `red,round.pickle`
    storage/<run>/<step>/<output>       an op's output; with a mapping key `<output>--<mapping key>`

The roots begin with an @, and assets end in `.pickle`, as no folder does: what was stored under former names
(`b29/orders`, `daily/2026-01-01`) is neither overwritten nor hidden by them.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

from dagster import MultiPartitionKey

#: Bytes of a key, and of what stands between two slashes: S3's limit, and that of file systems, on which MinIO lies.
LONGEST_KEY, LONGEST_SEGMENT = 1024, 255
ASSETS, PARTITIONS, OUTPUTS, VERSIONS = "@assets", "@partitions", "storage", "@versions"
#: What an asset's object ends in.
ENDING = ".pickle"
#: Stands before a hash, and in no other segment.
CUT = "~"
#: A segment that is its text.
PLAIN = re.compile(r"[A-Za-z0-9_:=@-](?:[A-Za-z0-9_:=@.-]{0,100}[A-Za-z0-9_:=@-])?")
PLAIN_CHARACTER = re.compile(r"[A-Za-z0-9_:=@.-]")
#: `op[mapping_key]`, the key of a step for one of several outputs.
MAPPED_STEP = re.compile(r"([^\[\]]+)\[([^\[\]]+)\]", re.DOTALL)


def asset(path: Sequence[str], partition: str | None = None) -> list[str]:
    """The segments of an asset's name, or of a partition of it. Dimensions are in the order of their names."""
    parts = [segment(part) for part in path]
    if partition is None:
        return [ASSETS, *parts] if parts else [ASSETS, CUT]
    values = partition.keys_by_dimension if isinstance(partition, MultiPartitionKey) else {}
    dimensions = [values[name] for name in sorted(values)] or partition.split("|")
    return [PARTITIONS, *parts, ",".join(map(segment, dimensions))]


def output(run_id: str, step_key: str, name: str, mapping_key: str | None = None) -> list[str]:
    """The segments of the name of an op's output."""
    mapped = MAPPED_STEP.fullmatch(step_key)
    step = _joined(*mapped.groups()) if mapped else _joined(step_key)
    return [OUTPUTS, segment(run_id), step, _joined(name, mapping_key) if mapping_key else _joined(name)]


def versioned(identifier: Sequence[str]) -> list[str]:
    """The segments of the name of an output that Dagster remembers by its version."""
    return [VERSIONS, *map(segment, identifier)]


def _joined(*names: str) -> str:
    """Names of ops, outputs and mapping keys, which have no `-`, joined by two."""
    return "--".join(segment(name).replace("-", "%2d") for name in names)


@lru_cache(maxsize=4096)
def segment(text: str) -> str:
    """A text as one segment of a name, or a part of one; not yet short enough."""
    if PLAIN.fullmatch(text):
        return text
    last = len(text) - 1
    encoded = (
        char if _is_plain(char) and not (char == "." and place in (0, last)) else _percent(char)
        for place, char in enumerate(text)
    )
    # A % is followed by two digits elsewhere.
    return "".join(encoded) or "%"


def _is_plain(char: str) -> bool:
    """Letters and digits of all languages are: by a table of Unicode that never changes, since no name may."""
    if char.isascii():
        return PLAIN_CHARACTER.match(char) is not None
    return unicodedata.ucd_3_2_0.category(char)[0] in "LN"


def _percent(char: str) -> str:
    # In small letters: for file systems that know no others.
    return "".join(f"%{byte:02x}" for byte in _utf8(char))


def key(prefix: str, segments: Sequence[str], folding: bool = False) -> str:
    """The name of an object under a prefix: what is too long keeps its beginning and gets a hash.

    `folding`: distinct also where large and small letters, or two ways to write an accent, are the same.
    """
    room = LONGEST_KEY - (len(prefix.encode()) + 1 if prefix else 0)
    ending = "" if segments[0] in (OUTPUTS, VERSIONS) else ENDING
    *folders, last = segments
    named = [*(_fitting(each, "", folding) for each in folders), _fitting(last, ending, folding)]
    name = "/".join(named)
    if len(name.encode()) > room:
        tail = f"{CUT}{_hash('/'.join(segments))}{ending}"
        while len(named) > 1 and len("/".join([*named, tail]).encode()) > room:
            named.pop()
        name = "/".join([*named, tail])
    return f"{prefix}/{name}" if prefix else name


def _fitting(text: str, ending: str, folding: bool) -> str:
    """A segment that is short enough, with its ending; one without does not end as those with one."""
    if not ending and text.endswith(ENDING):
        text = f"{text.removesuffix(ENDING)}%2e{ENDING[1:]}"
    if (
        len(text) + len(ending) > LONGEST_SEGMENT // 4
        and len(text.encode()) + len(ending) > LONGEST_SEGMENT - 20
    ):
        head = text.encode()[: LONGEST_SEGMENT - 64 - 40].decode(errors="ignore")
        text = f"{re.sub('%[0-9a-f]?$', '', head)}{CUT}{_hash(text)}"
    if folding and text != unicodedata.normalize("NFC", text.casefold()):
        text = f"{text}{CUT}{_hash(text)[:16]}"
    return text + ending


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def problem(key: str) -> str | None:
    """Why a user's key is not valid in every store; None when it is."""
    parts = key.split("/")
    size, longest = len(_utf8(key)), max(len(_utf8(part)) for part in parts)
    reasons = {
        "it is empty": not key,
        "it begins or ends with / or has two together": "" in parts,
        "it has . or .. between slashes": not {".", ".."}.isdisjoint(parts),
        "it has a NUL or a lone surrogate": "\0" in key or key != _utf8(key).decode(errors="replace"),
        f"it has {size:,} bytes, {LONGEST_KEY:,} are the most": size > LONGEST_KEY,
        f"it has more than {LONGEST_SEGMENT} bytes between two slashes": longest > LONGEST_SEGMENT,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _utf8(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
