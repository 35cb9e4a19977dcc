"""The names of the stack's pages: what .env may hold, and what is refused with the cure."""

import pytest

from dagster_stack.errors import SettingsError
from dagster_stack.own_names import Authority, OwnNames


def names(**environment: str) -> set[str]:
    return set(OwnNames.of("dagit", environment).hosts)


def test_without_settings_the_names_are_this_hosts_and_the_services() -> None:
    assert names() == {"127.0.0.1", "localhost", "[::1]", "dagit"}
    assert names(PUBLIC_HOST="", BIND_ADDRESS="") == names()


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("dagit.example.com", {"dagit.example.com"}),
        ("Dagit.Example.com:8443", {"dagit.example.com:8443"}),
        ("https://dagit.example.com/", {"dagit.example.com"}),
        ("http://dagit.example.com:80,https://other.example:443", {"dagit.example.com", "other.example"}),
        ("a, b:1 ,c,", {"a", "b:1", "c"}),
        ("[2001:DB8:0::7]:3000, 192.0.2.7", {"[2001:db8::7]:3000", "192.0.2.7"}),
        ("xn--bcher-kva.example", {"xn--bcher-kva.example"}),
    ],
)
def test_public_names_are_understood_as_people_write_them(text: str, public: set[str]) -> None:
    own = OwnNames.of("dagit", {"PUBLIC_HOST": text})

    assert {str(each) for each in own.public} == public
    assert {each.host for each in own.public} < own.hosts


@pytest.mark.parametrize(
    "text",
    ["*", "*.example.com", "https://example.com/dagit", "user@example.com", "a:b", "::1", "[::1", "0.0.0.0", "[::]:1",
     "ftp://example.com", "bücher.example", "a..b", "https://", "a;b", '"a"', "a:123456"],
)  # fmt: skip
def test_a_public_name_that_is_none_is_named_with_the_cure(text: str) -> None:
    with pytest.raises(
        SettingsError, match=r"PUBLIC_HOST must hold names such as .* Change it in \.env\."
    ) as error:
        names(PUBLIC_HOST=f"good.example,{text}")
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::1", "[::1]"),
        ("[2001:db8::7]", "[2001:db8::7]"),
        ("2001:DB8::7", "[2001:db8::7]"),
    ],
)
def test_the_address_that_the_pages_are_bound_to_is_a_name(address: str, host: str) -> None:
    assert host in names(BIND_ADDRESS=address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "[::]", "0:0:0:0:0:0:0:0"])
def test_every_address_is_no_name(address: str) -> None:
    assert names(BIND_ADDRESS=address) == names()


@pytest.mark.parametrize(
    "origin", ["null", "", "https://", "file:///x", "https://a/", "https://a b", "https://a@b"]
)
def test_what_is_no_page_of_a_server_has_no_authority(origin: str) -> None:
    assert Authority.of_origin(origin) is None
