"""Where an answer may send a request, and where not."""

from __future__ import annotations

import pytest
from yarl import URL

from consumers.sinks.http.guard import is_public, next_url, same_target
from forebay.errors import SinkMisconfigured

HERE = URL("https://shop.test/take")


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:c0a8:101::1", "::127.0.0.1", "localhost", "",
    ],
)  # fmt: skip
def test_any_other_address_is_not_however_it_is_written(address: str) -> None:
    assert not is_public(address)


def test_a_redirect_is_not_followed_unless_the_settings_say_so_and_says_where_to() -> None:
    with pytest.raises(
        SinkMisconfigured, match=r"answers 308, to https://new\.test/take; make that http\.url"
    ):
        next_url(HERE, 308, "https://new.test/take?token=1", follow=False, target="https://shop.test")


def test_where_it_leads_is_told_without_credentials() -> None:
    with pytest.raises(SinkMisconfigured) as told:
        next_url(HERE, 308, "https://u:pw@new.test/?key=sesame#x", follow=False, target="https://shop.test")

    assert not {"pw", "sesame", "u:"} & set(str(told.value).replace("/", " ").split())
    assert "sesame" not in str(told.value)
    assert "pw" not in str(told.value)


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_that_keeps_the_body_is_followed_if_wanted(status: int) -> None:
    assert next_url(HERE, status, "/v2/take", follow=True, target="t") == URL("https://shop.test/v2/take")


@pytest.mark.parametrize("status", [301, 302, 303, 304])
def test_one_that_drops_the_body_never_is(status: int) -> None:
    with pytest.raises(SinkMisconfigured, match="drop the message's body"):
        next_url(HERE, status, "/v2/take", follow=True, target="t")


@pytest.mark.parametrize("location", [None, "", "ftp://a/", "file:///etc/passwd", "gopher://a:70/"])
def test_what_leads_nowhere_is_not_followed(location: str | None) -> None:
    with pytest.raises(SinkMisconfigured):
        next_url(HERE, 307, location, follow=True, target="t")


def test_encryption_is_never_given_up() -> None:
    with pytest.raises(SinkMisconfigured, match="not encrypted"):
        next_url(HERE, 307, "http://shop.test/take", follow=True, target="t")


@pytest.mark.parametrize(
    ("configured", "to", "same"),
    [
        ("http://10.0.0.5:8080/a", "http://10.0.0.5:8080/b", True),
        ("http://shop.test/a", "https://shop.test/a", True),
        ("https://shop.test/a", "https://SHOP.test:443/b", True),
        ("http://10.0.0.5:8080/a", "http://10.0.0.5:22/", False),
        ("http://10.0.0.5:8080/a", "https://10.0.0.5/", False),
        ("https://shop.test/a", "https://shop.test.evil.test/a", False),
        ("https://shop.test/a", "https://shop.test@evil.test/a", False),
    ],
)
def test_the_same_target_is_the_same_host_and_port_or_its_encrypted_one(
    configured: str, to: str, same: bool
) -> None:
    assert same_target(URL(configured), URL(to)) is same
