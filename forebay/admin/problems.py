"""Every error of the admin API, as RFC 9457 problem documents with a next step."""

from __future__ import annotations

from typing import Any

from forebay import errors
from forebay.dead_letters.editing import CannotEdit, EditNotSent
from forebay.http_problems import Answer, Kind, problem
from forebay.storage.classify import TransientError
from forebay.storage.redrive_jobs import JobBusy, JobNotFound
from forebay.storage.schema import SchemaMismatch

UNAUTHENTICATED = Kind(
    name="unauthenticated",
    status=401,
    title="The token is missing or wrong",
    advice="Send the header Authorization: Bearer TOKEN. The token is admin.token, one of admin.tokens, or"
    " what the process printed when it started without any. `forebay dev` keeps it in the file admin-token of"
    " its data folder.",
)
INVALID_REQUEST = Kind(
    name="invalid-request",
    status=400,
    title="The request is not valid",
    advice="The detail says what is wrong with it. Sending the same request again gives the same answer.",
)
NO_CHOICE = Kind(
    name="no-choice",
    status=400,
    title="Nothing was chosen",
    advice='Choose dead letters by a member of "filter", or say "all": true.',
)
NOT_FOUND = Kind(
    name="not-found",
    status=404,
    title="There is nothing at this address",
    advice="The addresses that exist are in /openapi.json.",
)
DEAD_LETTER_NOT_FOUND = Kind(
    name="dead-letter-not-found",
    status=404,
    title="No dead letter has this id",
    advice="It may still rest in its queue's dead-letter queue on the broker: the consumers bring it to the"
    " database. Where it is otherwise: forebay message ID.",
)
JOB_NOT_FOUND = Kind(
    name="job-not-found",
    status=404,
    title="There is no such redrive",
    advice="GET /admin/v1/redrives lists those there are.",
)
QUEUE_NOT_FOUND = Kind(
    name="queue-not-found",
    status=404,
    title="No consumer knows this queue",
    advice="Add it to queue_names in forebay.toml, or to FOREBAY_QUEUE_NAMES, and restart the consumers; or"
    " correct the name.",
)
METHOD_NOT_ALLOWED = Kind(
    name="method-not-allowed",
    status=405,
    title="This address does not take this method",
    advice="The Allow header lists the methods it takes.",
)
CANNOT_EDIT = Kind(
    name="cannot-edit",
    status=409,
    title="The dead letter cannot be edited like this",
    advice="Only what is dead can be edited; the detail says what would fit.",
)
JOB_BUSY = Kind(
    name="job-busy",
    status=409,
    title="A redrive is in the way",
    advice="The member “job” names it. Look at it, resume it or stop it: /admin/v1/redrives/{job}.",
)
TOO_LARGE = Kind(
    name="body-too-large",
    status=413,
    title="The request's body is too large",
    advice="The member “limit” is the most that is taken, in bytes.",
)
UNPROCESSABLE = Kind(
    name="unprocessable",
    status=422,
    title="The request does not fit what this address expects",
    advice="The member “errors” lists what does not fit. Sending it unchanged gives the same answer.",
)
INTERNAL = Kind(
    name="internal",
    status=500,
    title="The admin API failed",
    advice="A bug on our side; its traceback is in the log. Look at what you meant to change before you try"
    " again.",
    retryable=True,
)
DATABASE_UNAVAILABLE = Kind(
    name="database-unavailable",
    status=503,
    title="The database cannot be used now",
    advice="Dead letters, redrives and controls are kept there. `forebay doctor` says what is wrong with it.",
    retryable=True,
)
BROKER_UNAVAILABLE = Kind(
    name="broker-unavailable",
    status=503,
    title="The broker cannot be reached",
    advice="Nothing was sent. `forebay doctor` says what is wrong with it.",
    retryable=True,
)
EDIT_NOT_SENT = Kind(
    name="edit-not-sent",
    status=503,
    title="The edited message could not be sent",
    advice="The old one is dead as before. The same request once more is harmless.",
    retryable=True,
)
HTTP_ERROR = Kind(
    name="http-error",
    status=400,
    title="The request was refused",
    advice="The status says why.",
)

KINDS: dict[str, Kind] = {k.name: k for k in list(globals().values()) if isinstance(k, Kind)}


class Refused(errors.ForebayError):
    """Ends a request with this problem."""

    def __init__(self, kind: Kind, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.kind = kind
        self.members: dict[str, Any] = members


def of_error(error: errors.ForebayError) -> Answer:
    """The answer for whatever of our tree a request ran into."""
    if isinstance(error, Refused):
        return problem(error.kind, str(error), **error.members)
    if isinstance(error, JobNotFound):
        return problem(JOB_NOT_FOUND, f"{error}. {JOB_NOT_FOUND.advice}")
    if isinstance(error, JobBusy):
        return problem(JOB_BUSY, str(error), job=error.job.id)
    if isinstance(error, CannotEdit):
        return problem(CANNOT_EDIT, str(error))
    if isinstance(error, EditNotSent):
        return problem(EDIT_NOT_SENT, str(error))
    if isinstance(error, errors.BrokerError):
        return problem(BROKER_UNAVAILABLE, f"{error}. {BROKER_UNAVAILABLE.advice}")
    if isinstance(error, (errors.SinkUnavailable, errors.SinkMisconfigured, TransientError, SchemaMismatch)):
        # The driver's words stay in the log: they may name hosts and users.
        return problem(DATABASE_UNAVAILABLE, DATABASE_UNAVAILABLE.advice)
    return problem(INTERNAL, INTERNAL.advice)
