"""
Every error a client can get, as RFC 9457 problem documents.

One table names them all; `type` points at a page that this gateway serves itself
(`/problems/<name>`). Our own trouble is a 5xx with Retry-After, never a 4xx: a
client library that gives up on 4xx must not drop a message because of us.
"""

from __future__ import annotations

from forebay import errors
from forebay.http_problems import CONTENT_TYPE, Answer, Kind, problem, retry_after

__all__ = ["CONTENT_TYPE", "Answer", "Kind", "problem", "retry_after"]

INVALID_REQUEST = Kind(
    name="invalid-request",
    status=400,
    title="The request is not valid",
    advice="The detail says what is wrong with it. Sending the same request again gives the same answer.",
)
INVALID_HEADER = Kind(
    name="invalid-header",
    status=400,
    title="A request header is not valid",
    advice="The member “header” names it; the detail has an example. Nothing was stored.",
)
INVALID_QUEUE_NAME = Kind(
    name="invalid-queue-name",
    status=400,
    title="No queue can have this name",
    advice="Queue names are lower-case letters, digits and hyphens, at most 63,"
    " starting with a letter or digit.",
)
SIGNATURE_INVALID = Kind(
    name="signature-invalid",
    status=401,
    title="The delivery is not shown to be genuine",
    advice="A webhook's signature, or the time or id that it covers, is missing, wrong or too old. Compare"
    " the secret at the service with sources.<name>.secrets, and this host's clock with the time; the"
    " gateway's log and forebay_gateway_deliveries_total say which check failed.",
)
UNAUTHENTICATED = Kind(
    name="unauthenticated",
    status=401,
    title="A valid API key is needed",
    advice="Send Authorization: Bearer with a key. Whoever runs this gateway makes one with"
    " forebay api-keys create NAME. Nothing of the request was read.",
)
QUEUE_FORBIDDEN = Kind(
    name="queue-forbidden",
    status=403,
    title="This API key may not use this queue",
    advice="Whether there is such a queue is not said. The queues a key may use are in gateway.keys_file, or"
    " given to forebay api-keys create NAME --queues. Nothing was stored.",
)
ORIGIN_FORBIDDEN = Kind(
    name="origin-forbidden",
    status=403,
    title="Pages of this origin may not call the gateway",
    advice="A browser asks before it lets a page of another origin send. Add the page's origin, such as"
    " https://shop.example, to gateway.cors_origins and restart the gateway.",
)
NOT_FOUND = Kind(
    name="not-found",
    status=404,
    title="There is nothing at this address",
    advice="The addresses that exist are listed at /docs.",
)
QUEUE_NOT_FOUND = Kind(
    name="queue-not-found",
    status=404,
    title="The queue is not declared",
    advice="Add it to queue_names in forebay.toml, or to FOREBAY_QUEUE_NAMES, and restart."
    " A queue that nobody declared has no consumer: messages sent there would wait for ever.",
)
NOT_SEEN_YET = Kind(
    name="not-seen-yet",
    status=404,
    title="Nothing is known about this message yet",
    advice="Either it was never accepted, or it was accepted by another gateway and still waits in the"
    " queue: the database hears of a message when a consumer stores it. Ask again later.",
    retryable=True,
)
BROKEN_BATCH = Kind(
    name="broken-batch",
    status=400,
    title="The body is not a batch of its content type",
    advice="The members “counts” and “results” tell of the items before the place that is broken; what comes"
    " behind it was not looked at.",
)
INVALID_ITEM = Kind(
    name="invalid-item",
    status=400,
    title="This item of the batch is not valid",
    advice="The detail says what is wrong with it. The other items are not touched by it.",
)
INVALID_EVENT = Kind(
    name="invalid-event",
    status=400,
    title="This is not a valid CloudEvent",
    advice="The detail names the attribute. Nothing of the event was stored.",
)
FORWARD_TARGET_NOT_FOUND = Kind(
    name="forward-target-not-found",
    status=404,
    title="There is no such target",
    advice="A target is a table [forward.<name>] of the settings, with the service's url; then"
    " /v1/forward/<name>/… keeps its requests. Add it, and restart the gateways and the consumers.",
)
NO_ANSWER = Kind(
    name="no-answer",
    status=404,
    title="No answer is kept for this id",
    advice="It is no forwarded request; or the service has not answered yet; or the answer is older than"
    " database.answer_retention. /v1/messages/{id} says how the request is.",
    retryable=True,
)
METHOD_NOT_ALLOWED = Kind(
    name="method-not-allowed",
    status=405,
    title="This address does not take this method",
    advice="The Allow header lists the methods it takes.",
)
BODY_TIMEOUT = Kind(
    name="body-timeout",
    status=408,
    title="The body did not arrive in time",
    advice="The connection stalled in the middle of the body. Nothing was stored; send the request again.",
    retryable=True,
)
BODY_TOO_LARGE = Kind(
    name="body-too-large",
    status=413,
    title="The body is too large",
    advice="The member “limit” is the largest body taken, in bytes. Store large content elsewhere and"
    " send a reference, or raise gateway.max_body_bytes and the broker's own limit.",
)
CORRUPT_BODY = Kind(
    name="corrupt-body",
    status=400,
    title="The compressed body cannot be read",
    advice="It is damaged, ends too early, or is not compressed as its Content-Encoding says. Nothing of it"
    " was stored.",
)
BATCH_TOO_LARGE = Kind(
    name="batch-too-large",
    status=413,
    title="The batch has too many items",
    advice="The member “limit” is how many items one batch may have (gateway.max_batch_items). “counts” and"
    " “results” tell what became of these; the items behind them were not looked at: send them as a batch of"
    " their own.",
)
UNSUPPORTED_BATCH = Kind(
    name="unsupported-batch",
    status=415,
    title="A batch of this content type is not taken",
    advice="The answer's Accept header lists what is. For one message of any type: POST …/messages.",
)
URI_TOO_LONG = Kind(
    name="uri-too-long",
    status=414,
    title="Path and query are too long",
    advice="They are kept beside the body, and every broker must be able to carry them; the member “limit” is"
    " how many characters they may have. Move the data into the body.",
)
UNSUPPORTED_ENCODING = Kind(
    name="unsupported-encoding",
    status=415,
    title="The body is compressed in a way that is not taken",
    advice="The answer's Accept-Encoding header lists what is. Bodies are stored uncompressed; if your"
    " consumer expects compressed bytes, send them without Content-Encoding.",
)
IDEMPOTENCY_CONFLICT = Kind(
    name="idempotency-conflict",
    status=422,
    title="The idempotency key was used for another message",
    advice="An idempotency key names one message: the same key may only be sent again with the same body,"
    " content type and ordering key. Use a new key for a new message.",
)
BATCH_REJECTED = Kind(
    name="batch-rejected",
    status=422,
    title="No item of the batch can be taken",
    advice="The member “results” has the reason for each. Sending it unchanged gives the same answer.",
)
SCHEMA_MISMATCH = Kind(
    name="schema-mismatch",
    status=422,
    title="The body does not fit the queue's schema",
    advice="The member “errors” names places in the body, as JSON Pointers, and the schema's keyword that"
    " each breaks. Nothing was stored; sending it unchanged gives the same answer. The schema is the file"
    " that queues.<name>.schema.file names.",
)
UNPROCESSABLE = Kind(
    name="unprocessable",
    status=422,
    title="The request does not fit what this address expects",
    advice="The member “errors” lists what does not fit. Sending it unchanged gives the same answer.",
)
HEADERS_TOO_LARGE = Kind(
    name="headers-too-large",
    status=431,
    title="The request's headers are too large",
    advice="Headers kept with a message are limited in number and size, so that every broker can carry"
    " them. Move the data into the body.",
)
QUOTA_EXCEEDED = Kind(
    name="quota-exceeded",
    status=429,
    title="This API key sends more than it may",
    advice="The member “violated-policies” names the limit: messages or bytes per second, or in-flight, the"
    " tenant's share of what the gateway may hold in work. Nothing was stored; send it again after"
    " Retry-After. The limits are in gateway.keys_file.",
    retryable=True,
)
INTERNAL = Kind(
    name="internal",
    status=500,
    title="The gateway failed",
    advice="A bug on our side; its traceback is in the gateway's log. It is not known whether a message was"
    " stored: send it again with the same Idempotency-Key.",
    retryable=True,
)
OVERLOADED = Kind(
    name="overloaded",
    status=503,
    title="Too many requests are in work",
    advice="The gateway holds as many messages in memory as it may (gateway.max_in_flight,"
    " gateway.max_in_flight_bytes). Nothing was stored; send it again after Retry-After.",
    retryable=True,
)
BROKER_UNAVAILABLE = Kind(
    name="broker-unavailable",
    status=503,
    title="The queue cannot be reached",
    advice="Nothing was stored; send the message again after Retry-After.",
    retryable=True,
)
NOT_SENT = Kind(
    name="not-sent",
    status=503,
    title="The message was not sent in time",
    advice="It waited for its turn until the request's deadline (gateway.request_timeout) and was certainly"
    " not stored; send it again after Retry-After.",
    retryable=True,
)
QUEUE_FULL = Kind(
    name="queue-full",
    status=503,
    title="The queue is full",
    advice="The queue, or the disk under it, is at its limit: its consumers are behind. Nothing was stored;"
    " send the message again after Retry-After.",
    retryable=True,
)
JOURNAL_FULL = Kind(
    name="journal-full",
    status=503,
    title="The queue cannot be reached, and the gateway's journal is full",
    advice="The broker is away, and what this gateway may keep for it meanwhile (gateway.journal_max_bytes,"
    " gateway.journal_max_age, or this tenant's journal_share of it) is used up, or its disk is full. Nothing"
    " was stored; send the message again after Retry-After.",
    retryable=True,
)
PUBLISH_REFUSED = Kind(
    name="publish-refused",
    status=503,
    title="The broker refused the message",
    advice="It is certainly not stored. The gateway's log has the broker's reason.",
    retryable=True,
)
OUTCOME_UNKNOWN = Kind(
    name="outcome-unknown",
    status=503,
    title="It is not known whether the message was stored",
    advice="The broker did not answer in time and may or may not have the message. Send it again with the"
    " same Idempotency-Key: it takes effect once. Without a key, look up the member “id” at"
    " /v1/messages/{id} before sending again.",
    retryable=True,
)
DURABILITY_UNAVAILABLE = Kind(
    name="durability-unavailable",
    status=503,
    title="The durability asked for cannot be reached",
    advice="Send it again after Retry-After, ask for less with the Prefer header, or repair the broker. When"
    " the answer has an “id”, the message is stored, only less safely: the member “durability” says how."
    " Without an “id” nothing was stored.",
    retryable=True,
)
STATUS_UNAVAILABLE = Kind(
    name="status-unavailable",
    status=503,
    title="The message's state cannot be looked up",
    advice="The database is not configured here or does not answer. Accepting messages is not touched by it.",
    retryable=True,
)
NOT_READY = Kind(
    name="not-ready",
    status=503,
    title="The gateway is starting or stopping",
    advice="Send the request again after Retry-After; another gateway, or this one restarted, will take it.",
    retryable=True,
)
HTTP_ERROR = Kind(
    name="http-error",
    status=400,
    title="The request was refused",
    advice="The status says why.",
)

KINDS: dict[str, Kind] = {k.name: k for k in list(globals().values()) if isinstance(k, Kind)}
"""All of them, by name: what the pages list and what metrics may use as a label."""

BROKER_ERRORS: dict[type[errors.BrokerError], Kind] = {
    errors.BrokerError: INTERNAL,
    errors.BrokerUnavailable: BROKER_UNAVAILABLE,
    errors.DurabilityUnavailable: DURABILITY_UNAVAILABLE,
    errors.BrokerClosed: NOT_READY,
    errors.QueueNotFound: QUEUE_NOT_FOUND,
    errors.MessageDecodeError: INTERNAL,
    errors.PublishError: OUTCOME_UNKNOWN,
    errors.PublishRejected: PUBLISH_REFUSED,
    errors.MessageTooLarge: BODY_TOO_LARGE,
    errors.NotSent: BROKER_UNAVAILABLE,
    errors.QueueFull: QUEUE_FULL,
    errors.JournalFull: JOURNAL_FULL,
    errors.PublishUnconfirmed: OUTCOME_UNKNOWN,
}


def kind_of(error: errors.BrokerError) -> Kind:
    """The problem a broker's error is to a client; the nearest base class in the table decides."""
    return next(BROKER_ERRORS[c] for c in type(error).__mro__ if c in BROKER_ERRORS)


def broker_problem(
    error: errors.BrokerError, *, message_id: str | None = None, queue: str | None = None
) -> Answer:
    """The answer for a broker's error. The text of errors that are ours stays in the log."""
    if isinstance(error, errors.QueueNotFound):
        return queue_not_found(error.queue)
    kind, detail = broker_error(error, queue)
    if isinstance(error, errors.MessageTooLarge):
        return problem(kind, detail, limit=error.limit, id=message_id)
    if kind is DURABILITY_UNAVAILABLE:
        # An id would say that the message is stored.
        return problem(kind, detail, queue=queue)
    return problem(kind, detail, id=message_id, queue=queue)


def broker_error(error: errors.BrokerError, queue: str | None) -> tuple[Kind, str]:
    """The same in words."""
    kind = kind_of(error)
    if isinstance(error, errors.MessageTooLarge):
        return kind, str(error)
    if kind is DURABILITY_UNAVAILABLE:
        return kind, (
            "What can take the message now is less safe than it asks for. Nothing was stored: send it again"
            " after Retry-After, or ask for less with the Prefer header."
        )
    detail = kind.title if queue is None else f"{kind.title}: {queue!r}"
    return kind, f"{detail}. {kind.advice}"


def queue_not_found(queue: str, *, nearest: str | None = None, made_by_first_use: bool = False) -> Answer:
    """404 with what would declare it: its first message, or two lines of settings."""
    guess = f" Did you mean {nearest!r}?" if nearest else ""
    if made_by_first_use:
        return problem(
            QUEUE_NOT_FOUND,
            f"Queue {queue!r} is not there yet.{guess} Its first message makes it:"
            f" POST /v1/queues/{queue}/messages",
            queue=queue,
        )
    return problem(
        QUEUE_NOT_FOUND,
        f"Queue {queue!r} is not declared.{guess} To declare it, add it to forebay.toml:\n"
        f'queue_names = "{queue}"\n'
        f"or to the environment:\nFOREBAY_QUEUE_NAMES={queue}\n"
        "beside the queues that are there, and restart the gateway and the consumers.",
        queue=queue,
    )
