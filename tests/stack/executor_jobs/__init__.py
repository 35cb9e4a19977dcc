"""Jobs that show what the executor promises, by subject; as a program, it executes them one by one. See `ad_hoc.py`.

Its modules import each other relatively: inside it has another name.
"""

#: Set for a run whose steps are all executed in its own process: the same jobs as Dagster's own executor has them.
IN_PROCESS = "EXECUTOR_JOBS_IN_PROCESS"
