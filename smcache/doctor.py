"""`smcache doctor`: what works and what does not between this machine and a secret, in the order of ``CHECKS``.

Each check is a function of the case that returns a ``Result`` or raises; what it found out stands in the case for the
checks after it. One that needs what has failed is skipped. Nothing here holds on to, prints or raises a value:
of the fields of a JSON object there are names only.

Exit codes, for scripts:
    0  nothing is wrong; a ``note`` is worth reading, but is no failure
    1  something does not work
    2  the arguments are wrong
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from smcache import _url
from smcache._core import AWSCURRENT, AWSPENDING, Key, check_key
from smcache._recovery import PENDING_RECENT
from smcache.config import CacheConfig
from smcache.errors import (
    AccessDenied,
    DecryptionFailed,
    MalformedResponse,
    NotConfigured,
    NotJSON,
    SecretCacheError,
    SecretDeleted,
    SecretNotFound,
    SecretValueError,
    Unavailable,
    WrongKind,
)
from smcache.sources.boto import BotoSource, client_settings, keep_out_of_logs, translate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from smcache.secret import Secret

__all__ = ["CHECKS", "Case", "Check", "Result", "examine", "run"]

Status = Literal["ok", "note", "failed", "skipped"]

MARKS: Mapping[Status, str] = {"ok": "ok", "note": "note", "failed": "FAIL", "skipped": "skip"}

#: How far a clock may be off before AWS refuses what it signs. Source: "a request must reach AWS within five minutes
#: of the time stamp in the request", docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
MAX_SKEW = 300.0

CLOCK_FIX = "set this machine's clock, and keep it right with NTP (chrony, the Amazon Time Sync Service)"
ENDPOINT_FIX = "check the Region's spelling, the endpoint URL, DNS, proxy and VPC endpoint"

#: Source: docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html
FIELDS_FIX = "store a JSON object with username and password, and as far as known engine, host, port and dbname"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one check found.

    Attributes:
        name: The check.
        status: ``ok``; ``note``: no failure, but worth reading; ``failed``; ``skipped``: it needs what has failed.
        detail: What it found.
        fix: What to do about it; empty where there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(kw_only=True)
class Case:
    """What was asked, and what the checks have found out so far.

    Attributes:
        secret_id: The secret.
        region: The Region; None as boto3 finds it.
        profile: The profile, likewise.
        endpoint_url: Where Secrets Manager is asked, likewise.
        clock: This machine's time, in seconds since 1970.
        session: The session of botocore.
        client: The client of Secrets Manager.
        description: The answer of DescribeSecret, or why there is none.
        answered_at: When that answer came, by this machine's clock.
        aws_time: When it was sent, by AWS's clock; None if it did not say.
        secret: The secret as AWSCURRENT has it; it keeps its value to itself.
        kms_error: Why its value could not be decrypted.
    """

    secret_id: str
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    clock: Callable[[], float] = time.time
    session: Any = None
    client: Any = None
    description: Mapping[str, Any] | SecretCacheError | None = None
    answered_at: float = 0.0
    aws_time: datetime | None = None
    secret: Secret | None = None
    kms_error: SecretCacheError | None = None

    @property
    def now(self) -> datetime:
        """The time, by AWS's clock where it is known."""
        return self.aws_time or datetime.fromtimestamp(self.clock(), timezone.utc)


@dataclass(frozen=True, slots=True)
class Check:
    """A check's name, what it does, and the checks without which it is skipped."""

    name: str
    look: Callable[[Case], Result]
    needs: tuple[str, ...] = ()


# --- the checks -----------------------------------------------------------------------------------------------


def check_profile(case: Case) -> Result:
    """Look whether the AWS configuration can be read and has the profile."""
    import botocore.session  # noqa: PLC0415 - half a second

    case.session = botocore.session.Session(profile=case.profile)
    case.session.get_scoped_config()
    return _ok("profile", case.session.profile or "default")


def check_credentials(case: Case) -> Result:
    """Look for credentials, and have temporary ones renewed."""
    try:
        found = case.session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()
    except Exception as error:
        # Not what translate() says of it: its hints are about secrets, not about the role that could not be assumed.
        raise NotConfigured(f"no credentials: {error}", code=type(error).__name__) from error
    if found is None:
        raise NotConfigured("no credentials in the environment, the profile or this machine's role")
    return _ok("credentials", f"found by {found.method}")


def check_identity(case: Case) -> Result:
    """Ask STS who we are. It may be out of reach, which is no failure of the secret."""
    try:
        with closing(case.session.create_client("sts", region_name=case.region, config=_settings())) as sts:
            me = sts.get_caller_identity()
    except Exception as error:  # noqa: BLE001 - whatever it is, Secrets Manager may work all the same
        reason = translate(error, "")
        return _note("identity", f"STS does not tell: {reason.message} [{reason.code}]")
    return _ok("identity", f"{me.get('Arn')}, account {me.get('Account')}")


def check_region(case: Case) -> Result:
    """Look for the Region."""
    here = case.region or case.session.get_config_variable("region")
    there = _region_of(case.secret_id)
    if not here:
        raise NotConfigured(
            "no region in the environment or the profile",
            hint=f"give --region {there or 'REGION'}, or set AWS_DEFAULT_REGION (boto3 does not read AWS_REGION) or "
            "the profile's region",
        )
    if there not in ("", here):
        raise NotConfigured(f"the ARN is one of {there}, but {here} is asked", hint=f"ask there: --region {there}")
    case.region = here
    return _ok("region", here)


def check_endpoint(case: Case) -> Result:
    """Ask for the secret's description: is there anybody who answers, and is it Secrets Manager?"""
    try:
        case.client = case.session.create_client(
            "secretsmanager", region_name=case.region, endpoint_url=case.endpoint_url, config=_settings()
        )
    except ValueError as error:  # of a Region or an endpoint that cannot be one
        raise NotConfigured(str(error), hint="correct the Region or the endpoint's URL") from error
    url = case.client.meta.endpoint_url
    try:
        told = case.client.describe_secret(SecretId=case.secret_id)
        found = told if told.get("ARN") else MalformedResponse("no ARN")
    except Exception as error:  # noqa: BLE001 - a refusal is an answer, and anything else is raised below
        told = getattr(error, "response", None)
        found = translate(error, case.secret_id)
    if isinstance(found, MalformedResponse):
        said = f"{url} gives no answer of Secrets Manager: {found.message}"
        raise MalformedResponse(said, code=found.code, hint=ENDPOINT_FIX)
    if not isinstance(told, dict):
        if type(found) is Unavailable:  # others know better
            found.hint = ENDPOINT_FIX
        raise found
    case.description = found
    case.answered_at = case.clock()
    case.aws_time = _date(told.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))
    return _ok("endpoint", f"{url} answers")


def check_secret(case: Case) -> Result:
    """Look whether the secret is there, and whether it is deleted or a replica."""
    told = case.description
    if isinstance(told, AccessDenied):
        return _note(
            "secret",
            f"may not be described: {told.message} [{told.code}]",
            "allow secretsmanager:DescribeSecret to have versions and rotation checked; the cache needs it only for "
            "check_version_first",
        )
    if isinstance(told, SecretNotFound):
        raise SecretNotFound(f"{told.message.rstrip('.')} in {case.region}", code=told.code)
    if isinstance(told, SecretCacheError):
        raise told
    assert told is not None  # noqa: S101 - for mypy: check_endpoint got it, or this check is skipped
    if told.get("DeletedDate") is not None:
        raise SecretDeleted(f"marked for deletion: AWS removes it after {_time(told['DeletedDate'])}")
    found = [told["ARN"]]
    if told.get("OwningService"):
        found.append(f"managed by {told['OwningService']}")
    if told.get("PrimaryRegion") not in (None, "", case.region):
        found.append(f"a replica of the one in {told['PrimaryRegion']}")
    replicas = told.get("ReplicationStatus") or ()
    found += [f"replica in {each.get('Region')}: {each.get('Status')}" for each in replicas]
    if any(each.get("Status") == "Failed" for each in replicas):
        fix = "see StatusMessage in DescribeSecret's answer, and call ReplicateSecretToRegions again"
        return _note("secret", ", ".join(found), fix)
    return _ok("secret", ", ".join(found))


def check_read(case: Case) -> Result:
    """Read the secret as the cache does."""
    try:
        case.secret = BotoSource(case.client).fetch(case.secret_id, AWSCURRENT, None).value
    except (AccessDenied, DecryptionFailed) as error:
        if not _is_about_kms(error):
            raise
        # Secrets Manager looks at its own permissions first.
        case.kms_error = DecryptionFailed(error.message, code=error.code)
    return _ok("read", f"GetSecretValue of {AWSCURRENT} is allowed")


def check_kms(case: Case) -> Result:
    """Look whether the value could be decrypted, and with which key."""
    if case.kms_error is not None:
        raise case.kms_error
    if not isinstance(case.description, dict):
        return _ok("kms", "the value was decrypted")
    key = case.description.get("KmsKeyId")  # left out where it is the AWS-managed key
    return _ok("kms", f"the value was decrypted with the key {key or 'aws/secretsmanager, which AWS manages'}")


def check_versions(case: Case) -> Result:
    """Look which version each label is on."""
    if not isinstance(case.description, dict):
        return _not_described("versions")
    labelled = _labels(case.description)
    if AWSCURRENT not in labelled:
        raise SecretNotFound(f"no version is {AWSCURRENT}", hint="store a value: PutSecretValue")
    return _ok("versions", ", ".join(f"{label} {labelled[label]}" for label in sorted(labelled)))


def check_rotation(case: Case) -> Result:
    """Look whether a rotation is under way, stuck or overdue."""
    told = case.description
    if not isinstance(told, dict):
        return _not_described("rotation")
    labelled = _labels(told)
    schedule = _schedule(told)
    pending = labelled.get(AWSPENDING)
    if pending is not None and pending != labelled.get(AWSCURRENT):
        return _pending(case, told, pending, schedule)
    due = told.get("NextRotationDate")
    # "If rotation is unsuccessful, this date may be in the past": DescribeSecret in the API reference.
    if told.get("RotationEnabled") and due is not None and _age(case, due) > PENDING_RECENT:
        return _failed(
            "rotation", f"overdue: {schedule}", "see the log of the rotation function, then call RotateSecret"
        )
    return _ok("rotation", schedule)


def check_clock(case: Case) -> Result:
    """Compare this machine's clock with AWS's."""
    if case.aws_time is None:
        return _note("clock", "the answer of AWS does not say when it was sent")
    off = case.answered_at - case.aws_time.timestamp()
    if abs(off) <= MAX_SKEW:
        return _ok("clock", f"within {max(1.0, abs(off)):.0f} s of AWS's")
    return _failed(
        "clock",
        f"{_span(abs(off))} {'ahead of' if off > 0 else 'behind'} AWS's, which refuses more than {_span(MAX_SKEW)}",
        CLOCK_FIX,
    )


def check_value(case: Case) -> Result:
    """Look whether the value has the fields a database needs. Values stay where they are."""
    found = case.secret
    assert found is not None  # noqa: S101 - for mypy: check_read got it, or this check is skipped
    try:
        fields = found.json()
        names = ", ".join(sorted(map(repr, fields))) or "no field"
        if not fields.keys() & {"engine", "username", "dbname"}:
            return _note("value", f"a JSON object with {names}", "nothing, unless it is a database's: " + FIELDS_FIX)
        if fields.get("engine") == "redis" and "username" not in fields:
            found["password"]  # which is all that it needs
        else:
            _url.arguments(found, _url.LIBPQ, {})
    except SecretValueError as error:
        if isinstance(error, (NotJSON, WrongKind)) and not _is_meant_as_json(found):
            return _note("value", error.message, "nothing, unless it is a database's: " + FIELDS_FIX)
        return _failed("value", error.message, FIELDS_FIX)
    absent = ", ".join(name for name in ("engine", "host", "port", "dbname") if name not in fields)
    return _ok("value", f"a JSON object with {names}" + (f"; who connects must know {absent}" if absent else ""))


CHECKS: tuple[Check, ...] = (
    Check("profile", check_profile),
    Check("credentials", check_credentials, needs=("profile",)),
    Check("identity", check_identity, needs=("credentials",)),
    Check("region", check_region, needs=("profile",)),
    Check("endpoint", check_endpoint, needs=("credentials", "region")),
    Check("secret", check_secret, needs=("endpoint",)),
    Check("read", check_read, needs=("secret",)),
    Check("kms", check_kms, needs=("read",)),
    Check("versions", check_versions, needs=("secret",)),
    Check("rotation", check_rotation, needs=("versions",)),
    Check("clock", check_clock, needs=("endpoint",)),
    Check("value", check_value, needs=("kms",)),
)


# --- what they share --------------------------------------------------------------------------------------------


def _ok(name: str, detail: str) -> Result:
    return Result(name=name, status="ok", detail=detail)


def _note(name: str, detail: str, fix: str = "") -> Result:
    return Result(name=name, status="note", detail=detail, fix=fix)


def _failed(name: str, detail: str, fix: str) -> Result:
    return Result(name=name, status="failed", detail=detail, fix=fix)


def _not_described(name: str) -> Result:
    return Result(name=name, status="skipped", detail="needs DescribeSecret")


def _settings() -> Any:
    from botocore.config import Config  # noqa: PLC0415 - half a second

    return Config(**client_settings(CacheConfig().fetch_timeout))


def _region_of(secret_id: str) -> str:
    parts = secret_id.split(":")
    return parts[3] if parts[0] == "arn" and len(parts) > 3 else ""  # noqa: PLR2004 - arn:aws:secretsmanager:REGION:


def _is_about_kms(error: SecretCacheError) -> bool:
    # AWS says "Access to KMS is not allowed" where kms:Decrypt is missing.
    return isinstance(error, DecryptionFailed) or "Access to KMS" in error.message or "kms:" in error.message


def _is_about_the_clock(error: SecretCacheError) -> bool:
    # AWS's words are those of docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html
    said = ("Signature expired", "Signature not yet current")
    return error.code == "RequestExpired" or error.message.startswith(said)


def _is_meant_as_json(found: Secret) -> bool:
    try:
        return found.string.lstrip().startswith("{")
    except SecretValueError:
        return False


def _labels(told: Mapping[str, Any]) -> Mapping[str, str]:
    listed = told.get("VersionIdsToStages") or {}
    return {label: version_id for version_id, labels in listed.items() for label in labels}


def _schedule(told: Mapping[str, Any]) -> str:
    known = ["on" if told.get("RotationEnabled") else "off"]
    for name, field in (("last", "LastRotatedDate"), ("next by", "NextRotationDate")):
        if told.get(field) is not None:
            known.append(f"{name} {_time(told[field])}")
    return ", ".join(known)


def _pending(case: Case, told: Mapping[str, Any], version_id: str, schedule: str) -> Result:
    """Judge an AWSPENDING that is not AWSCURRENT: left a short time ago or long ago?"""
    since, hidden = told.get("LastChangedDate"), ""
    try:
        made = BotoSource(case.client).fetch(case.secret_id, AWSPENDING, None).value.created_at
        since = made or since
    except SecretNotFound:
        hidden = ", without a value so far"  # createSecret has not stored one
    except SecretCacheError as error:
        hidden = f", which may not be read: {error.message} [{error.code}]"
    age = None if since is None else _age(case, since)
    if age is not None and age > PENDING_RECENT:
        return _failed(
            "rotation",
            f"stuck: {AWSPENDING} has been on version {version_id} for {_span(age)}{hidden}; {schedule}",
            "see the log of the rotation function, then call RotateSecret again; or CancelRotateSecret, and take "
            f"{AWSPENDING} off the version (UpdateSecretVersionStage)",
        )
    lasted = "" if age is None else f" for {_span(max(0.0, age))}"
    detail = f"under way{lasted}: {AWSPENDING} is on version {version_id}{hidden}; {schedule}"
    if not hidden:
        return _ok("rotation", detail)
    fix = f"nothing, or allow {AWSPENDING} to be read: logins rejected meanwhile wait until {AWSCURRENT} moves"
    return _note("rotation", detail, fix)


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return date if date.tzinfo else None


def _age(case: Case, then: datetime) -> float:
    return (case.now - then).total_seconds()


def _time(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _span(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


# --- the examination ----------------------------------------------------------------------------------------------


def examine(case: Case) -> Iterator[Result]:
    """Run the checks in order and yield what each found, as soon as it is known.

    Raises:
        InvalidArgument: The secret's id is none that AWS could accept.
    """
    check_key(Key(case.secret_id))
    keep_out_of_logs()
    blocked: dict[str, str] = {}  # the checks that failed or were skipped, each with the failure behind it
    try:
        for check in CHECKS:
            causes = [blocked[name] for name in check.needs if name in blocked]
            if causes:
                blocked[check.name] = causes[0]
                yield Result(name=check.name, status="skipped", detail=f"needs {causes[0]}")
                continue
            result = _look(check, case)
            if result.status == "failed":
                blocked[check.name] = check.name
            yield result
    finally:
        if case.client is not None:
            case.client.close()


def _look(check: Check, case: Case) -> Result:
    try:
        return check.look(case)
    except SecretCacheError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - whatever AWS or a client comes up with is a line, not a traceback
        failure = translate(error, case.secret_id)
    code = "" if failure.code == type(failure).__name__ else f" [{failure.code}]"
    fix = CLOCK_FIX if _is_about_the_clock(failure) else failure.hint
    return Result(name=check.name, status="failed", detail=f"{failure.message}{code}", fix=fix)


def run(
    secret_id: str,
    *,
    region: str | None = None,
    profile: str | None = None,
    endpoint_url: str | None = None,
    as_json: bool = False,
) -> int:
    """Examine a secret and print what was found, one line a check or one JSON object.

    Args:
        secret_id: Its name or ARN.
        region: The Region; None as boto3 finds it, as for the next two.
        profile: The profile.
        endpoint_url: Where Secrets Manager is asked. STS is not asked there.
        as_json: Print JSON.

    Returns:
        0 if no check failed, otherwise 1.

    Raises:
        InvalidArgument: The secret's id is none that AWS could accept.
    """
    case = Case(secret_id=secret_id, region=region, profile=profile, endpoint_url=endpoint_url)
    results = []
    for result in examine(case):
        results.append(result)
        if not as_json:
            _say(f"{MARKS[result.status]:<5} {result.name:<12} {result.detail}")
            if result.fix:
                _say(f"{'':<18} fix: {result.fix}")
    failed = [result.name for result in results if result.status == "failed"]
    if as_json:
        answer = {"ok": not failed, "secret_id": secret_id, "checks": [asdict(result) for result in results]}
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    else:
        _say("Does not work: " + ", ".join(failed) if failed else "Nothing is wrong.")
    return 1 if failed else 0


def _say(line: str) -> None:
    """Print one line: what AWS or a file says must not break it, nor the terminal."""
    plain = "".join(character if character.isprintable() else " " for character in line)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(plain.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()
