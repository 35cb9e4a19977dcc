"""The user's project: where its files and variables come from, in the image and in every process that loads its code."""
