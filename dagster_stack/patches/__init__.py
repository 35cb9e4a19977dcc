"""The one room for parts of other libraries that their next release may change without a word: a module a library.

What is replaced in them, and what is used of them though it is private, stands here with its reason. What takes its
place stands where it belongs. `tests/unit/test_patches.py` holds each part against the installed release, and finds
those that stand elsewhere; `make test-versions` does so with other releases.
"""
