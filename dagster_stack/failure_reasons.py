"""Why the stack itself fails a step: what figures and alerts count by, whatever the sentence beside it says."""

from enum import StrEnum

#: The label that it has in the metadata of the failure.
LABEL = "dagster-stack/reason"


class Reason(StrEnum):
    """A change of a value is a change for everybody who counts failures."""

    #: Its workers were lost, as often as MAX_DELIVERIES allows.
    DELIVERY_LIMIT = "delivery-limit"
    #: It was executed often, and never came to its end.
    EXECUTION_LIMIT = "execution-limit"
    #: It had begun, and must not be executed twice.
    NOT_REPEATED = "not-repeated"
    #: No worker had the code of its run.
    FOREIGN_CODE = "foreign-code"
    #: Its process was killed, since it did not end when its time was over.
    TIME_LIMIT = "time-limit"
    #: It is of a run that another step executed by itself, and that execution is over.
    LOST_WITH_STEP = "lost-with-step"
    #: It could not be loaded or executed there; the error says why.
    NOT_EXECUTED = "not-executed"
