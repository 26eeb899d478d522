"""Where a webhook may lead: the URL's form, and the addresses behind its host. Pure.

Whoever makes a webhook has us send requests from inside our network (server-side request forgery). So a
URL leads to the public internet over https, or into a network that the operator has named, and nowhere
else. The form is narrow on purpose: what two parsers could read differently is refused, not repaired.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Literal

from command_side.errors import WebhookUrlNotAllowed

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Scheme = Literal["https", "http"]

MAX_URL: Final = 2048
_MAX_HOST: Final = 253
_MAX_PORT: Final = 65535

_URL: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>(?:/[A-Za-z0-9\-._~!$&'()*+,;=:@/%]*)?(?:\?[A-Za-z0-9\-._~!$&'()*+,;=:@/?%]*)?)",
    re.ASCII,
)
"""RFC 3986 without user information and fragment, in ASCII, and with underscores in names, as container
networks have them."""
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
"""A last label like this makes the host an IPv4 address in the eyes of resolvers and browsers: decimal,
octal, hexadecimal, in one to four parts (https://url.spec.whatwg.org/#ends-in-a-number-checker)."""

_SPECIAL_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this host, this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT; metadata of one cloud
        "127.0.0.0/8",
        "168.63.129.16/32",  # public in form, and the platform's own address inside a large cloud
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; metadata of one cloud
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
"""https://www.iana.org/assignments/iana-ipv4-special-registry, whatever it calls reachable."""
_UNICAST_V6: Final = IPv6Network("2000::/3")
"""All that is given out. Loopback, unspecified, unique local, link-local, multicast, mapped and
discard-only addresses lie outside."""
_SPECIAL_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, ORCHID, benchmarks: protocol assignments
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address within, reached through whoever relays
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
"""https://www.iana.org/assignments/iana-ipv6-special-registry"""
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""How a host without IPv4 is told of an IPv4 address (RFC 6052): that address counts."""


@dataclass(frozen=True, slots=True)
class Target:
    scheme: Scheme
    host: str
    """A name in lower case, or an address without brackets."""
    port: int
    path: str
    """With the query; at least `/`."""

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """Raises WebhookUrlNotAllowed, with a reason that repeats nothing of the URL."""
    if len(url) > MAX_URL:
        raise WebhookUrlNotAllowed(f"must not be longer than {MAX_URL} characters")
    match = _URL.fullmatch(url)
    if match is None:
        raise WebhookUrlNotAllowed(
            "must be https://host[:port][/path][?query] in ASCII, without user name and fragment;"
            " an international name is written in its xn-- form"
        )
    scheme: Scheme = "https" if match["scheme"] == "https" else "http"
    port = int(match["port"]) if match["port"] else (443 if scheme == "https" else 80)
    if not 0 < port <= _MAX_PORT:
        raise WebhookUrlNotAllowed("must have a port from 1 to 65535, or none")
    host = _name(match["host"]) if match["v6"] is None else _v6(match["v6"])
    target = match["target"]
    return Target(scheme, host, port, target if target.startswith("/") else f"/{target}")


def literal_address(host: str) -> Address | None:
    """The host of a Target as an address; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _v6(text: str) -> str:
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise WebhookUrlNotAllowed("must have an IPv6 address between its brackets") from None


def _name(host: str) -> str:
    if literal_address(host) is not None:
        return host
    labels = host.split(".")
    if len(host) > _MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise WebhookUrlNotAllowed("must have a host name of ordinary labels, without a dot at its end")
    if _NUMBER.fullmatch(labels[-1]):
        raise WebhookUrlNotAllowed("must write an IPv4 address as four decimal numbers")
    return host.lower()


@dataclass(frozen=True, slots=True)
class Policy:
    networks: tuple[Network, ...] = ()
    """That the operator has named: any port, and plain http, too."""
    ports: frozenset[int] = frozenset({443})
    """Of public addresses."""

    def permit(self, scheme: str, port: int, addresses: Iterable[str]) -> Sequence[Address]:
        """The addresses, if every one of them is allowed: a name with one good address and one bad one
        is a trap. Raises WebhookUrlNotAllowed. The reason is the same whether a host is unknown, private
        or partly so: else whoever makes webhooks could ask for names of the inner network."""
        found = [_address(text) for text in addresses]
        if found and all(address is not None and self._named(address) for address in found):
            return [address for address in found if address is not None]
        if scheme != "https":
            raise WebhookUrlNotAllowed("must begin with https://")
        if port not in self.ports:
            ports = ", ".join(str(port) for port in sorted(self.ports))
            raise WebhookUrlNotAllowed(f"must have one of the ports {ports}")
        public = [address for address in found if address is not None and is_public(address)]
        if not found or len(public) < len(found):
            raise WebhookUrlNotAllowed("must have a host whose addresses are all public")
        return public

    def _named(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.networks)


def is_public(address: Address) -> bool:
    """Whether it is somebody's on the internet, and nobody's in particular inside a network."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _UNICAST_V6 and not any(address in network for network in _SPECIAL_V6)


def _address(text: str) -> Address | None:
    """None for what is no address, or one with a zone (fe80::1%eth0): it means another host everywhere."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    zoned = isinstance(address, IPv6Address) and address.scope_id is not None
    return None if zoned else address


def network(text: str) -> Network:
    """Raises ValueError for what is no CIDR, or one with bits set beyond its prefix."""
    return ip_network(text)
