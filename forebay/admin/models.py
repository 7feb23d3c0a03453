"""What the admin API takes and answers, for its OpenAPI document too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from forebay.dead_letters.redrive import MAX_DIED_SHARE, PATIENCE
from forebay.storage.dead_letters import DeadLetterFilter

Status = Literal["dead", "redriving", "resolved", "discarded"]


def _storable(text: str) -> str:
    """No database takes these in text, and no text that is stored holds them."""
    if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("must hold no NUL and no lone surrogate")
    return text


def _utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (OverflowError, ValueError):
        raise ValueError("is out of range") from None


Text = Annotated[str, Field(max_length=200), AfterValidator(_storable)]
Sentence = Annotated[str, Field(max_length=2_000), AfterValidator(_storable)]
Time = Annotated[datetime, AfterValidator(_utc)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Filter(Strict):
    """Which dead letters. What is left out does not matter."""

    queue: Text | None = None
    error_class: Text | None = None
    group: Text | None = None
    """A fingerprint."""
    key: Text | None = None
    """Their ordering key."""
    text: Text | None = None
    """In the reason, whatever its case, or in the body, exactly."""
    since: Time | None = None
    """Died later."""
    before: Time | None = None
    """Died earlier."""
    ids: Annotated[list[UUID], Field(max_length=1_000)] | None = None

    def which(self, status: Status | None) -> DeadLetterFilter:
        return DeadLetterFilter(
            queue=self.queue,
            status=status,
            error_class=self.error_class,
            fingerprint=self.group,
            ids=[str(id) for id in self.ids] if self.ids is not None else None,
            died_after=self.since,
            died_before=self.before,
            key=self.key,
            text=self.text,
        )


class Chosen(Strict):
    filter: Filter = Filter()
    all: bool = False
    """Without any filter."""
    dry_run: bool = False
    """Only tell how many it would be."""


class RedriveRequest(Chosen):
    status: Literal["dead", "redriving", "discarded"] = "dead"
    canary: bool = True
    """1, then 10, then 100, then the rest, looking in between."""
    rate: Annotated[float, Field(ge=0.1, le=1e6, allow_inf_nan=False)] | None = None
    """Messages per second at most."""
    limit: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Only so many, the oldest first."""
    max_died_share: Annotated[float, Field(ge=0, le=1)] = MAX_DIED_SHARE
    """Of what one stage sent; when more dies again, it stops."""
    patience: Annotated[float, Field(ge=0, le=86_400)] = PATIENCE
    """Seconds to wait for what a stage sent."""


class DiscardRequest(Chosen):
    reason: Sentence = ""


class SetValue(Strict):
    pointer: Sentence
    """A JSON pointer (RFC 6901): /customer/id"""
    value: Any


class EditRequest(Strict):
    """Exactly one of `body`, `body_base64` and `set`."""

    body: str | None = None
    body_base64: str | None = None
    set: Annotated[list[SetValue], Field(min_length=1, max_length=100)] | None = None
    """Values in a JSON body."""
    destination: Text | None = None
    """Where one id was given up by several."""
    dry_run: bool = False


class PauseRequest(Strict):
    reason: Sentence = ""


class ResumeRequest(Strict):
    allow_dead_letters: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """So many more may be given up before it counts as suspicious again, by each consumer."""


class ThrottleRequest(Strict):
    rate: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None
    """Messages per second and consumer process at most; null: as the settings say."""


# ---- answers


class DeadLetter(BaseModel):
    id: str
    destination: str
    queue: str
    key: str | None
    content_type: str
    headers: dict[str, str]
    accepted_at: datetime
    attempts: int
    reason: str
    error_class: str
    fingerprint: str
    died_at: datetime
    status: Status
    original_id: str | None
    history: list[dict[str, Any]]
    edited_from: str | None
    edited_to: str | None
    discard_reason: str | None
    changed_by: str | None
    redrive_job: str | None
    redriven_at: datetime | None


class WholeDeadLetter(DeadLetter):
    """With `body`, or where that is not UTF-8 `body_base64`; and `detail`, which may hold row values."""

    detail: str
    body: str | None = None
    body_base64: str | None = None


class DeadLetterPage(BaseModel):
    dead_letters: list[DeadLetter]
    next: str | None
    """The `cursor` of the next page; null at the end."""


class DeadLetters(BaseModel):
    dead_letters: list[WholeDeadLetter]


class Group(BaseModel):
    fingerprint: str
    error_class: str
    destination: str
    reason: str
    count: int
    first_died_at: datetime
    last_died_at: datetime
    sample_id: str


class Groups(BaseModel):
    groups: list[Group]


class Redrive(BaseModel):
    id: str
    selection: dict[str, Any]
    requested_by: str
    origin: str
    state: Literal["running", "paused", "stopped", "done", "failed"]
    why: str
    canary: bool
    stage: int
    rate: float | None
    max_died_share: float
    patience: float
    total: int
    sent: int
    arrived: int
    died_again: int
    on_their_way: int
    failed: int
    created_at: datetime
    changed_at: datetime
    ended_at: datetime | None
    lease_owner: str | None
    lease_until: datetime | None


class Redrives(BaseModel):
    redrives: list[Redrive]


class Counted(BaseModel):
    dry_run: bool
    count: int


class Edited(BaseModel):
    dry_run: bool
    id: str
    new_id: str
    diff: str


class Control(BaseModel):
    queue: str
    paused: bool
    paused_by: str | None
    reason: str
    rate: float | None
    allowance: int | None
    changed_at: datetime | None
    changed_by: str


class Queue(BaseModel):
    """What a broker cannot tell is null, and `unknown` says why."""

    name: str
    waiting: int | None
    scheduled: int | None
    in_hand: int | None
    dead: int | None
    bytes: int | None
    oldest_age: float | None
    reported: list[str]
    reported_age: float | None
    unknown: str
    control: Control


class Queues(BaseModel):
    queues: list[Queue]


class State(BaseModel):
    queues: list[Queue]
    dead_letters: dict[str, int]
    """How many there are of each status."""
    redrives: list[Redrive]
    """Those that are not over."""


class Entry(BaseModel):
    id: str
    at: datetime
    who: str
    action: str
    queue: str | None
    selection: dict[str, Any] | None
    count: int | None
    detail: str


class Entries(BaseModel):
    entries: list[Entry]
    next: str | None
    """The `cursor` of the next page; null at the end."""
