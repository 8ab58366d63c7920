"""Why a command of gcloud failed, and whether trying again can help.

Sources: the codes of google.rpc.Code; the sentences as users of Cloud TPUs quote them: "There is no
more capacity in the zone", "Quota limit 'TPUV5s...' has been exceeded. Limit: 0", "Insufficient
reserved capacity" (skypilot#4579), LOCATION_POLICY_VIOLATED; those of the gcloud CLI 528 itself.
"""

import dataclasses
import enum
import re

from launch.tpu_vm.gcloud import Reply


class Kind(enum.Enum):
    """Kinds of failures."""

    QUOTA = "quota"
    STOCKOUT = "stockout"
    NOT_FOUND = "not found"
    EXISTS = "exists"
    DENIED = "denied"
    MISTAKE = "mistake"
    BUSY = "busy"
    TRANSIENT = "transient"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"


# Whether trying again can help; the others say the same again.
_AGAIN = (Kind.QUOTA, Kind.STOCKOUT, Kind.BUSY, Kind.TRANSIENT, Kind.TIMEOUT, Kind.UNKNOWN)
# What was asked for may have happened, or may yet.
_UNSURE = (Kind.TRANSIENT, Kind.TIMEOUT, Kind.UNKNOWN)

_CODES = {
    3: Kind.MISTAKE,  # INVALID_ARGUMENT
    4: Kind.TRANSIENT,  # DEADLINE_EXCEEDED
    5: Kind.NOT_FOUND,
    6: Kind.EXISTS,
    7: Kind.DENIED,
    8: Kind.STOCKOUT,  # RESOURCE_EXHAUSTED, unless it speaks of a quota
    9: Kind.BUSY,  # FAILED_PRECONDITION
    10: Kind.BUSY,  # ABORTED
    11: Kind.MISTAKE,  # OUT_OF_RANGE
    12: Kind.MISTAKE,  # UNIMPLEMENTED
    13: Kind.TRANSIENT,  # INTERNAL
    14: Kind.TRANSIENT,  # UNAVAILABLE
    16: Kind.DENIED,  # UNAUTHENTICATED
}
_STATUSES = {
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
_HTTP = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 14, 500: 13, 502: 14, 503: 14, 504: 4}

# Patterns of what is said, in the order in which they are believed.
_SAID = (
    (Kind.TRANSIENT, r"per minute|rate limit|too many requests"),
    (Kind.QUOTA, r"quota.{0,200}?(exceeded|exhausted)|QUOTA_EXCEEDED"),
    (Kind.STOCKOUT, r"no more capacity|insufficient (reserved )?capacity|stockout"),
    (Kind.STOCKOUT, r"not enough (resources|capacity)|RESOURCE_POOL_EXHAUSTED"),
    (
        Kind.TRANSIENT,
        r"max retries exceeded|connection (reset|refused|aborted|error)|connectionerror|"
        r"unable to find the server|failed to resolve|name resolution|network is unreachable|"
        r"timed out|deadline exceeded|broken pipe|remote end closed|temporarily unavailable",
    ),
    (Kind.DENIED, r"active account|auth tokens|reauthentication|invalid_grant|credentials"),
    (Kind.DENIED, r"SERVICE_DISABLED|has not been used in project|LOCATION_POLICY_VIOLATED"),
    (Kind.MISTAKE, r"unrecognized arguments|invalid choice|invalid value|argument --"),
)
_LONGEST = 300  # letters of what gcloud said that are shown


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a command failed."""

    kind: Kind
    said: str = ""  # by gcloud, one line

    @property
    def again(self) -> bool:
        """Tells whether trying again can help."""
        return self.kind in _AGAIN

    @property
    def unsure(self) -> bool:
        """Tells whether what was asked for may have happened, or may yet."""
        return self.kind in _UNSURE

    @property
    def sentence(self) -> str:
        """Returns what is wrong and what to do."""
        said = f" ({self.said})" if self.said else ""
        return {
            Kind.QUOTA: f"the project's quota is used up{said}; delete what is dead or idle, which "
            "counts too (list --all shows it), or ask Google Cloud for more.",
            Kind.STOCKOUT: f"the zone has no such TPU to give now{said}; wait, or take another "
            "zone or type.",
            Kind.NOT_FOUND: f"there is no such resource{said}; list shows what is there.",
            Kind.EXISTS: f"the name is taken{said}; choose another --name, or delete what has it.",
            Kind.DENIED: f"Google Cloud does not let you{said}; run gcloud auth login, and see "
            "that the project has the Cloud TPU API and you the role TPU Admin.",
            Kind.MISTAKE: f"Google Cloud does not understand the request{said}; change the flags.",
            Kind.BUSY: f"the resource is between two states{said}; wait.",
            Kind.TRANSIENT: f"Google Cloud could not answer{said}; wait.",
            Kind.TIMEOUT: "gcloud did not answer in time; see whether the network is there.",
            Kind.UNKNOWN: f"gcloud failed{said or ' without a word'}; see what it says.",
        }[self.kind]


def of_reply(reply: Reply) -> Failure | None:
    """Returns why a command failed; None where it did not."""
    if reply.status == 0:
        return None
    if reply.status is None:
        return Failure(Kind.TIMEOUT)
    said = _error(reply.err)
    if reply.status == 2:  # of its own flags
        return Failure(Kind.MISTAKE, _line(said))
    return Failure(_kind(said), _line(said))


def of_code(code: int, message: str) -> Failure:
    """Returns why a queued resource is FAILED.

    Args:
      code: of google.rpc.Code; 0 where none is given, as where its time in the queue ran out.
      message: what goes with it.
    """
    kind = _spoken(message) or _CODES.get(code, Kind.UNKNOWN)
    return Failure(kind, _line(message))


def _kind(said: str) -> Kind:
    code = _code(said)
    # The API's own word comes before what its sentence happens to contain.
    if code in (3, 5, 6, 7, 9, 10) and not re.search(r"quota", said, re.IGNORECASE):
        return _CODES[code]
    return _spoken(said) or _CODES.get(code, Kind.UNKNOWN)


def _spoken(said: str) -> Kind | None:
    for kind, pattern in _SAID:
        if re.search(pattern, said, re.IGNORECASE | re.DOTALL):
            return kind
    return None


def _code(said: str) -> int:
    if matched := re.search(rf"\b({'|'.join(_STATUSES)})\b", said):
        return _STATUSES[matched[1]]
    if matched := re.search(r'"code": (\d{1,3})\b', said):
        found = int(matched[1])
        return _HTTP.get(found, found)
    if matched := re.search(r"(?:HTTPError|HttpError|HTTP|status:?) (\d{3})\b", said):
        return _HTTP.get(int(matched[1]), 0)
    return 0


def _error(err: str) -> str:
    """Returns what follows the last ERROR, without what was narrated before."""
    return re.split(r"^ERROR: ", err, flags=re.MULTILINE)[-1]


def _line(said: str) -> str:
    said = re.sub(r"^\(gcloud\.[\w.-]+\) ?", "", said.strip())
    if matched := re.search(r'"message": "((?:[^"\\]|\\.)*)"', said):
        said = matched[1].replace('\\"', '"')
    line = " ".join(said.split("\n\n")[0].split())
    line = re.sub(r"This command is authenticated as .*", "", line).strip().rstrip(".")
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."
