"""Mails through a service that is slow, sometimes busy and sometimes down."""

import os

import aiohttp

from forebay import Message, Reject, RetryLater, Unavailable


async def send(message: Message) -> None:
    url = os.environ["MAIL_SERVICE"]
    # The service sends a mail once, however often it is asked to under the same key.
    headers = {"Idempotency-Key": message.id, "Content-Type": message.content_type}
    timeout = aiohttp.ClientTimeout(total=10)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(url, data=message.body, headers=headers) as response,
        ):
            status = response.status
            wait = float(response.headers.get("Retry-After", 30))
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        raise Unavailable("the mail service does not answer") from error
    match status:
        case 200 | 202:
            return
        case 429:
            raise RetryLater(wait)
        case 400 | 422:
            raise Reject(f"the mail service refuses it with {status}")
        case 503:
            raise Unavailable("the mail service is overloaded", retry_after=wait)
        case _:
            raise RuntimeError(f"the mail service answered {status}")
