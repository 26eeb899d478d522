"""Where webhooks may lead: forms of URLs, and addresses behind names."""

import ipaddress
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_side.errors import WebhookUrlNotAllowed
from command_side.webhooks.resolver import Guard
from command_side.webhooks.targets import Policy, is_public, parse

PUBLIC_V4 = "93.184.215.14"
PUBLIC_V6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
STRICT = Policy(ports=frozenset({443, 8443}))
ZONE = {
    "hooks.example.com": [PUBLIC_V4, PUBLIC_V6],
    "xn--bcher-kva.example": [PUBLIC_V4],
    "inside.example.com": ["10.1.2.3"],
    "both.example.com": [PUBLIC_V4, "169.254.169.254"],
    "linked.example.com": ["fe80::1%eth0"],
    "nowhere.example.com": [],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "dec.example.com": ["0.0.0.0"],
}


async def zone(host: str, _port: int) -> list[str]:
    if host not in ZONE:
        raise OSError("unknown")
    return ZONE[host]


async def refusal(url: str, policy: Policy = STRICT) -> str | None:
    try:
        await Guard(policy, zone).check(parse(url))
    except WebhookUrlNotAllowed as error:
        return error.reason
    return None


ALLOWED = [
    "https://hooks.example.com",
    "https://hooks.example.com/",
    "https://HOOKS.example.com/Path/%20?a=b&c=d/e?f",
    "https://hooks.example.com:443/x",
    "https://hooks.example.com:8443/x",
    "https://hooks.example.com?x=1",
    "https://hooks.example.com/@user:name",
    "https://xn--bcher-kva.example/",
    f"https://{PUBLIC_V4}/",
    f"https://[{PUBLIC_V6}]/",
    "https://[64:ff9b::5db8:d70e]/",  # NAT64 of a public IPv4 address
]

REFUSED = {
    # Forms
    "": "must be https",
    "hooks.example.com": "must be https",
    "//hooks.example.com/": "must be https",
    "ftp://hooks.example.com/": "must be https",
    "file:///etc/passwd": "must be https",
    "gopher://hooks.example.com/": "must be https",
    "HTTPS://hooks.example.com/": "must be https",
    "https:hooks.example.com": "must be https",
    "https:///hooks.example.com": "must be https",
    "https://user@hooks.example.com/": "must be https",
    "https://user:secret@hooks.example.com/": "must be https",
    "https://hooks.example.com@127.0.0.1/": "must be https",
    "https://127.0.0.1\\@hooks.example.com/": "must be https",
    "https://127.0.0.1#@hooks.example.com/": "must be https",
    "https://hooks.example.com/#fragment": "must be https",
    "https://hooks.example.com /": "must be https",
    " https://hooks.example.com/": "must be https",
    "https://hooks.example.com/\r\nHost: inside": "must be https",
    "https://hooks.example.com/\n": "must be https",
    "https://hooks.example.com\t/": "must be https",
    "https://hooks.example.com/\x00": "must be https",
    "https://hooks.example.com:/": "must be https",
    "https://hooks.example.com:8443x/": "must be https",
    "https://hooks.example.com:0/": "port from 1",
    "https://hooks.example.com:65536/": "port from 1",
    "https://hooks.example.com:99999/": "port from 1",
    "https://bücher.example/": "must be https",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/": "must be https",
    "https://１２７.0.0.1/": "must be https",
    "https://127。0。0。1/": "must be https",
    "https://hooks%2eexample.com/": "must be https",
    "https://hooks.example.com./": "ordinary labels",
    "https://.hooks.example.com/": "ordinary labels",
    "https://hooks..example.com/": "ordinary labels",
    "https://-hooks.example.com/": "ordinary labels",
    f"https://{'a' * 64}.example.com/": "ordinary labels",
    f"https://{'a.' * 127}com/": "ordinary labels",
    f"https://hooks.example.com/{'a' * 2048}": "longer",
    # IPv4 in other clothes
    "https://2130706433/": "four decimal",
    "https://0x7f000001/": "four decimal",
    "https://0x7f.1/": "four decimal",
    "https://0X7F.0.0.0x1/": "four decimal",
    "https://017700000001/": "four decimal",
    "https://0177.0.0.1/": "four decimal",
    "https://127.1/": "four decimal",
    "https://127.0.1/": "four decimal",
    "https://127.0.0.1.2/": "four decimal",
    "https://127.0.0.256/": "four decimal",
    "https://127.0.0.01/": "four decimal",
    "https://93.184.215.0x/": "four decimal",
    # Addresses
    "https://127.0.0.1/": "public",
    "https://127.8.8.8/": "public",
    "https://0.0.0.0/": "public",
    "https://10.0.0.1/": "public",
    "https://172.16.0.1/": "public",
    "https://172.31.255.255/": "public",
    "https://192.168.1.1/": "public",
    "https://100.64.0.1/": "public",
    "https://100.100.100.200/": "public",
    "https://169.254.169.254/latest/meta-data/": "public",
    "https://168.63.129.16/": "public",
    "https://192.0.0.192/": "public",
    "https://198.18.0.1/": "public",
    "https://203.0.113.7/": "public",
    "https://224.0.0.1/": "public",
    "https://240.0.0.1/": "public",
    "https://255.255.255.255/": "public",
    "https://[::]/": "public",
    "https://[::1]/": "public",
    "https://[::127.0.0.1]/": "public",
    "https://[::ffff:127.0.0.1]/": "public",
    "https://[::ffff:7f00:1]/": "public",
    f"https://[::ffff:{PUBLIC_V4}]/": "public",
    "https://[64:ff9b::127.0.0.1]/": "public",
    "https://[64:ff9b::a9fe:a9fe]/": "public",
    "https://[64:ff9b:1::1]/": "public",
    "https://[2002:7f00:1::]/": "public",
    "https://[2002:5db8:d70e::1]/": "public",
    "https://[2001:0:5db8:d70e::1]/": "public",
    "https://[fe80::1]/": "public",
    "https://[fec0::1]/": "public",
    "https://[fc00::1]/": "public",
    "https://[fd00:ec2::254]/": "public",
    "https://[ff02::1]/": "public",
    "https://[2001:db8::1]/": "public",
    "https://[3fff::1]/": "public",
    "https://[100::1]/": "public",
    "https://[fe80::1%25eth0]/": "must be https",
    "https://[::1": "must be https",
    "https://[::gg]/": "must be https",
    "https://[:::1]/": "IPv6",
    "https://[1.2.3.4]/": "IPv6",
    # Names
    "https://localhost/": "public",
    "https://LOCALHOST/": "public",
    "https://localhost.localdomain/": "public",
    "https://inside.example.com/": "public",
    "https://both.example.com/": "public",
    "https://linked.example.com/": "public",
    "https://nowhere.example.com/": "public",
    "https://unknown.example.com/": "public",
    "https://metadata.google.internal/computeMetadata/v1/": "public",
    "https://kubernetes.default.svc/": "public",
    "https://dec.example.com/": "public",
    # Ports and schemes
    "http://hooks.example.com/": "https://",
    f"http://{PUBLIC_V4}/": "https://",
    "http://127.0.0.1/": "https://",
    "https://hooks.example.com:22/": "ports 443, 8443",
    "https://hooks.example.com:25/": "ports 443, 8443",
    "https://hooks.example.com:6379/": "ports 443, 8443",
    "https://hooks.example.com:80/": "ports 443, 8443",
}


@pytest.mark.parametrize("url", ALLOWED)
async def test_public_ones_are_allowed(url: str) -> None:
    assert await refusal(url) is None


@pytest.mark.parametrize("url", REFUSED)
async def test_others_are_refused_with_a_reason_that_repeats_nothing(url: str) -> None:
    reason = await refusal(url)
    assert reason is not None
    assert REFUSED[url] in reason
    assert "inside" not in reason
    assert not any(part in reason for part in ("127", "169", "secret", "localhost"))


async def test_an_unknown_name_a_private_one_and_a_mixed_one_cannot_be_told_apart() -> None:
    names = ("unknown", "inside", "both", "nowhere")
    assert len({await refusal(f"https://{name}.example.com/") for name in names}) == 1


NAMED = Policy(
    networks=(ip_network("10.1.0.0/16"), ip_network("127.0.0.0/8"), ip_network("::1/128")),
    ports=frozenset({443}),
)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://10.1.2.3:8080/", True),
        ("https://10.1.2.3:9443/", True),
        ("http://inside.example.com/", True),
        ("http://localhost:9000/", True),
        ("http://[::1]:9000/", True),
        ("https://hooks.example.com/", True),
        ("http://hooks.example.com/", False),
        ("https://hooks.example.com:9443/", False),
        ("https://10.2.0.1/", False),
        ("http://[::ffff:10.1.2.3]/", False),
        ("https://[64:ff9b::10.1.2.3]/", False),
        ("https://both.example.com/", False),
    ],
)
async def test_networks_that_the_operator_has_named(url: str, allowed: bool) -> None:
    assert (await refusal(url, NAMED) is None) == allowed


@given(st.ip_addresses())
def test_what_we_call_public_the_standard_library_calls_global(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_public(address) and address not in ip_network("64:ff9b::/96"):
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_an_address_of_version_4_is_judged_alike_behind_nat64(address: ipaddress.IPv4Address) -> None:
    behind = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | int(address))
    assert is_public(behind) == is_public(address)
    for prefix in ("::ffff:0:0", "::", "2002::"):
        wrapped = int(ipaddress.IPv6Address(prefix))
        shift = 80 if prefix == "2002::" else 0
        assert not is_public(ipaddress.IPv6Address(wrapped | int(address) << shift))


@given(st.text(max_size=60))
def test_nothing_but_a_refusal_comes_of_any_text(text: str) -> None:
    for url in (text, f"https://{text}", f"https://hooks.example.com/{text}"):
        try:
            target = parse(url)
        except WebhookUrlNotAllowed:
            continue
        assert url.isascii()
        assert target.path.startswith("/")
        assert not set(' \r\n\t\\#"<>@') & set(target.host)
