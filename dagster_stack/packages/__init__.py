"""Packages by file: what a project asks for, resolved beside the platform's own, and what stands in the way.

Runs in the image's build and on the host, before any package is installed: standard library, uv and `packaging` alone.
"""
