"""Further hosts whose workers belong to this stack: reached by their engines' own remote access, and by nothing of ours."""
