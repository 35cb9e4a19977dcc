"""The bucket's rule by which step logs expire, beside the rules of others."""

import logging
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from dagster_stack.settings import LOG_EXPIRY_DAYS

logger = logging.getLogger(__name__)

#: How the rule is called, in a bucket of several stacks with the prefix.
RULE = "expire-step-logs"
#: What step logs end in; each has a file for stdout and one for stderr.
LOG_ENDINGS = (".out", ".err", ".out.partial", ".err.partial")


def rule_id(key_prefix: str) -> str:
    return f"{RULE}:{key_prefix.rstrip('/')}" if key_prefix else RULE


def set_log_expiry(client: Any, bucket: str, log_prefix: str, key_prefix: str = "") -> None:
    """Let step logs expire; rules with other ids stay as they are. Raises boto's errors."""
    name = rule_id(key_prefix)
    now, others = rules(client, bucket)
    foreign = [rule for rule in now if rule.get("ID") != name]
    # Both forms together are refused. https://docs.aws.amazon.com/AmazonS3/latest/API/API_LifecycleRule.html
    prefix = {"Prefix": f"{log_prefix}/"}
    place: dict[str, Any] = prefix if any("Prefix" in rule for rule in foreign) else {"Filter": prefix}
    ours = {"ID": name, "Status": "Enabled", **place, "Expiration": {"Days": LOG_EXPIRY_DAYS}}
    if ours not in now:
        put(client, bucket, [*foreign, ours], others)
    logger.info(
        "step logs under %s/ expire after %d days", log_prefix, LOG_EXPIRY_DAYS,
        extra={"action": "bucket.expiry_set"},
    )  # fmt: skip


def set_no_log_expiry(client: Any, bucket: str, key_prefix: str = "") -> None:
    """Take the rule away; those of others stay. Raises boto's errors."""
    now, others = rules(client, bucket)
    foreign = [rule for rule in now if rule.get("ID") != rule_id(key_prefix)]
    if foreign == now:
        return
    if foreign:
        put(client, bucket, foreign, others)
    else:
        client.delete_bucket_lifecycle(Bucket=bucket)


def rules(client: Any, bucket: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rules that are there, and what else a configuration says."""
    try:
        answer = client.get_bucket_lifecycle_configuration(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchLifecycleConfiguration", "404"):
            return [], {}
        raise
    kept = ("TransitionDefaultMinimumObjectSize",)
    return list(answer.get("Rules", [])), {name: answer[name] for name in kept if name in answer}


def put(client: Any, bucket: str, rules: list[dict[str, Any]], others: dict[str, Any]) -> None:
    client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": rules}, **others
    )


def holds_foreign_logs(client: Any, bucket: str, log_prefix: str) -> bool:
    """Whether there are objects under `logs/` that no stack made; those are named `logs/storage/….out` and `.err`."""
    answer = client.list_objects_v2(Bucket=bucket, Prefix=f"{log_prefix}/", Delimiter="/")
    ours = f"{log_prefix}/storage/"
    folders = {entry["Prefix"] for entry in answer.get("CommonPrefixes", ())}
    if answer.get("Contents") or folders - {ours}:
        return True
    some = client.list_objects_v2(Bucket=bucket, Prefix=ours).get("Contents", ())
    return any(not entry["Key"].endswith(LOG_ENDINGS) for entry in some)


def expire_logs_of_outside_bucket(
    client: Any, bucket: str, log_prefix: str, key_prefix: str, was_made: bool
) -> None:
    """Let step logs expire where nobody else's objects would with them; says what was decided."""
    try:
        if not (was_made or key_prefix) and holds_foreign_logs(client, bucket, log_prefix):
            set_no_log_expiry(client, bucket)
            logger.warning(
                "the bucket %s has objects of others under %s/: they must not expire, so step logs do not either."
                " Set S3_PREFIX in .env for a place of the stack's own, or delete old step logs yourself.",
                bucket, log_prefix, extra={"action": "bucket.expiry_left_out"},
            )  # fmt: skip
        else:
            set_log_expiry(client, bucket, log_prefix, key_prefix)
    except (ClientError, BotoCoreError) as error:
        logger.warning(
            "the outside store takes no expiry rule, old step logs stay until you delete them: %s",
            error, extra={"action": "bucket.expiry_refused"},
        )  # fmt: skip
