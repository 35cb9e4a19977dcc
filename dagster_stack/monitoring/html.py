"""HTML and SVG as trees: what is put in as text stays text, whoever wrote it."""

import hashlib
from base64 import b64encode
from xml.etree.ElementTree import Element, tostring

Child = Element | str | None


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """An element with texts and elements in it. `class_` is its class, `aria_label` its `aria-label`; None is left out."""
    made = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): f"{value}"
            for name, value in attributes.items()
            if value is not None
        },
    )
    for child in children:
        if isinstance(child, str):
            if len(made):
                made[-1].tail = (made[-1].tail or "") + child
            else:
                made.text = (made.text or "") + child
        elif child is not None:
            made.append(child)
    return made


def document(root: Element) -> bytes:
    """The page in UTF-8."""
    body: bytes = tostring(root, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + body


def source_of(style: str) -> str:
    """What a Content-Security-Policy must name to allow this very style sheet, and no other."""
    return f"'sha256-{b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
