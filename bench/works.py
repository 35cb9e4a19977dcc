"""What is measured: each work with the executors that it is given to. Needs nothing but Python."""

from dataclasses import dataclass, field

#: What the report calls each variant.
VARIANT_TITLES = {
    "stack": "this stack",
    "stock": "dagster-celery",
    "multiprocess": "multiprocess",
    "in_process": "in-process",
    "in_process_here": "in-process on this stack's storages",
}
ALL_BUT_MULTIPROCESS = ("stack", "stock", "in_process", "in_process_here")
#: Why a work is not given to the multiprocess executor.
PROCESS_A_STEP = "a new process for every step: the chain of 21 shows what that takes"


@dataclass(frozen=True)
class Work:
    """One work: its steps, the workers that it wants, and the seconds that nobody can beat, where there are such."""

    title: str
    steps: int
    variants: tuple[str, ...] = ALL_BUT_MULTIPROCESS
    workers: int = 2
    ideal: float = 0
    #: Why a variant is not measured.
    left_out: dict[str, str] = field(default_factory=dict)


WORKS = {
    "chain_21": Work("chain of 21 no-op steps", 21, tuple(VARIANT_TITLES)),
    "parallel_50": Work("50 parallel no-op steps", 50, tuple(VARIANT_TITLES)),
    "chain_40_10ms": Work("chain of 40 steps of 10 ms", 40, left_out={"multiprocess": PROCESS_A_STEP}),
    "flights": Work("`flights`, a year of real data", 15, left_out={"multiprocess": PROCESS_A_STEP}),
    "parallel_1000": Work("1,000 parallel no-op steps", 1000, left_out={"multiprocess": PROCESS_A_STEP}),
    "sleep_64": Work(
        "64 steps that sleep 1 s, 8 workers", 64, ("stack", "stock"), workers=8, ideal=8,
        left_out={"multiprocess": PROCESS_A_STEP, "in_process": "one after the other they sleep 64 s"},
    ),
}  # fmt: skip
#: The work whose steps are followed on their way.
CHAIN = "chain_21"
#: What is measured besides: 200 MB through S3, where a step's time goes, memory, launches by themselves and in a
#: backfill, and what monitoring asks of the database.
TRANSFER, STEPS, MEMORY, LAUNCH, BACKFILL, SCRAPE = PARTS = (
    "transfer_200mb",
    "steps",
    "memory",
    "launch",
    "backfill",
    "scrape",
)
#: What the report calls each way to launch, and the job that is launched. Dagster's default launcher starts a process
#: for each run; its run queue looks every 5 s unless it is told otherwise.
LAUNCHERS = {
    "stack": "this stack",
    "stock": "Dagster's default launcher",
    "stock_5": "the same, run queue as it comes",
}
LAUNCHED = {"stack": "launched_stack", "stock": "launched_stock", "stock_5": "launched_stock"}
#: Seconds between two looks of the run queue of Dagster's own, and the runs that it lets go on at once.
INTERVALS = {"stock": 1, "stock_5": 5}
#: How often each is launched, and the runs of a backfill.
LAUNCH_ROUNDS, PARTITIONS = 12, 100
#: Executed first and not counted: processes load what they have not yet.
WARM_UP = "warm_up"
