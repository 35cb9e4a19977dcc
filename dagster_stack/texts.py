"""Texts of events as Dagit can always show them: what it can't is replaced visibly, what is too long is cut."""

import json
import re
from math import isfinite
from typing import Any

#: Characters of a message, an error or a description, and of a metadata value, that are kept.
MOST_TEXT, MOST_VALUE = 100_000, 1_000_000
#: Characters that the note of a cut takes at most.
NOTE = 60
#: Characters that an event has as JSON. In one that is longer texts and values are cut to a tenth, then to less.
MOST_EVENT = 4_000_000
#: Metadata entries that an event keeps which is too long all the same.
MOST_ENTRIES = 1_000
#: Halves of UTF-16 pairs that stand alone, as file names have them, are no text: it can't be encoded. Postgres knows no
#: NUL.
ODD = re.compile("[\0\ud800-\udfff]")
#: The same as JSON has it, where a pair, as of an emoji, is in order.
ESCAPED = re.compile(r"\\u(?:0000|d[89a-f])")
#: What Python writes for numbers that JSON does not know.
NO_NUMBERS = ("NaN", "Infinity")


def shown(text: str) -> str:
    """A text that can be stored and encoded: `␀` for NUL, `\\udcff` in letters for a lone surrogate."""
    return ODD.sub(lambda found: "␀" if found[0] == "\0" else f"\\u{ord(found[0]):04x}", text)


def cut(text: str, most: int) -> str:
    """The beginning of a text that is longer, with its full length; what is cut already stays as it is."""
    if len(text) <= most + NOTE:
        return text
    return f"{text[:most]}… [cut: {most:,} of {len(text):,} characters]"


def presentable(event: str) -> str:
    """An event as JSON, in ASCII as Dagster serialises it; the very same one when nothing is to be done."""
    if len(event) <= MOST_TEXT and not (
        ("\\u" in event and ESCAPED.search(event)) or any(word in event for word in NO_NUMBERS)
    ):
        return event
    for divisor in (1, 10, 100, 1000):
        found = json.loads(event)
        _mend(found, MOST_TEXT // divisor, MOST_VALUE // divisor, MOST_ENTRIES if divisor > 1 else None)
        mended = json.dumps(found)
        if len(mended) <= MOST_EVENT:
            break
    return mended


def _mend(event: Any, most_text: int, most_value: int, most_entries: int | None) -> None:
    """Mend what `json.loads` made, in place. Not by recursion: what users say may be as deep as JSON allows."""
    #: With what it belongs to: the most that its texts have, and whether Dagit shows it as JSON.
    waiting: list[tuple[Any, int, bool]] = [(event, most_text, False)]
    while waiting:
        node, most, as_json = waiting.pop()
        if isinstance(node, dict):
            kind = str(node.get("__class__", ""))
            if kind == "AssetKey":
                # Not a text but a name, by which it is found.
                continue
            if kind.endswith(("MetadataEntryData", "MetadataValue")):
                most = most_value
                _mend_value(node, kind, most_value)
            as_json = as_json or kind in {"JsonMetadataEntryData", "TableRecord"}
            named = list(node.items())
            node.clear()
            node.update((cut(shown(name), most), value) for name, value in named)
            entries = node.get("metadata_entries")
            if most_entries and isinstance(entries, list):
                _leave_out(entries, most_entries)
        for place, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if isinstance(value, str):
                node[place] = cut(shown(value), most)
            elif isinstance(value, dict | list):
                waiting.append((value, most, as_json))
            elif as_json and isinstance(value, float) and not isfinite(value):
                # Its page reads it by JavaScript's `JSON.parse`.
                node[place] = str(value)


def _mend_value(node: dict[str, Any], kind: str, most: int) -> None:
    """A metadata value that can't be shown as what it is becomes a text that says so."""
    value = node.get("value")
    if kind == "TimestampMetadataValue" and isinstance(value, float) and not isfinite(value):
        text = str(value)
    elif any(isinstance(part, dict | list) for part in node.values()):
        whole = json.dumps(
            {name: part for name, part in node.items() if name != "__class__"}, ensure_ascii=False
        )
        if len(whole) <= most:
            return
        name = kind.removesuffix("MetadataEntryData").removesuffix("MetadataValue")
        text = f"[cut: {name} of {len(whole):,} characters, {most:,} are kept at most] {whole[:1000]}…"
    else:
        return
    node.clear()
    node.update({"__class__": "TextMetadataEntryData", "text": text})


def _leave_out(entries: list[Any], most: int) -> None:
    left_out = len(entries) - most
    if left_out > 0:
        note = {"__class__": "TextMetadataEntryData", "text": f"{left_out:,} more entries are left out"}
        entries[most:] = [
            {"__class__": "EventMetadataEntry", "description": None, "entry_data": note, "label": "cut"}
        ]
