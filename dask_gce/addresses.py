"""Settings that are addresses: of services on the network, and of ranges of it.

Every check takes text and the setting's key, and returns the address in one spelling. None of
them asks anybody: names of hosts are not looked up here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

from dask_gce.errors import SettingsError

__all__ = [
    "check_api_endpoint",
    "check_iap_endpoint",
    "check_range",
    "check_service",
    "is_loopback",
    "reach_everybody",
]

#: The version of the protocol that is spoken with Google's tunnels, as their address ends.
_IAP_PATH: Final = "/v4"


def check_api_endpoint(address: str, *, key: str = "api_endpoint") -> str:
    """Check the address of a Compute API.

    Parameters
    ----------
    address : str
        The address.
    key : str
        The setting, for errors.

    Returns
    -------
    str
        The same without a slash at its end.

    Raises
    ------
    SettingsError
        If it is none, has a path, or would send credentials unencrypted to another computer.

    Examples
    --------
    >>> check_api_endpoint("http://127.0.0.1:8080/")
    'http://127.0.0.1:8080'
    """
    url = _parse(address, key, schemes=("http", "https"), example="http://127.0.0.1:8080")
    if url.path not in {"", "/"} or "?" in address or "#" in address:
        raise _refuse(
            key,
            address,
            f"must have no path; use '{url.scheme}://{url.netloc}' (/compute/v1 is added)",
        )
    if url.scheme == "http" and not is_loopback(address):
        raise _refuse(
            key,
            address,
            "would send credentials unencrypted; use https:// (http:// is for 127.0.0.1)",
        )
    return f"{url.scheme}://{url.netloc}"


def check_iap_endpoint(address: str, *, key: str = "iap_endpoint") -> str:
    """Check the address of the far end of tunnels.

    Parameters
    ----------
    address : str
        The address, which ends in the version of the protocol.
    key : str
        The setting, for errors.

    Returns
    -------
    str
        The same without a slash at its end.

    Raises
    ------
    SettingsError
        If it is none, has another path, or would send credentials unencrypted to another
        computer.

    Examples
    --------
    >>> check_iap_endpoint("wss://tunnel.cloudproxy.app/v4/")
    'wss://tunnel.cloudproxy.app/v4'
    """
    url = _parse(address, key, schemes=("ws", "wss"), example="wss://tunnel.cloudproxy.app/v4")
    right = f"{url.scheme}://{url.netloc}{_IAP_PATH}"
    if url.path.rstrip("/") != _IAP_PATH or "?" in address or "#" in address:
        raise _refuse(key, address, f"must end in {_IAP_PATH}; use '{right}'")
    if url.scheme == "ws" and not is_loopback(address):
        raise _refuse(
            key,
            address,
            "would send credentials unencrypted; use wss:// (ws:// is for 127.0.0.1)",
        )
    return right


def check_service(address: str, *, key: str = "client_address_services") -> str:
    """Check the address of a service that tells whoever asks from which address they ask.

    Parameters
    ----------
    address : str
        The address.
    key : str
        The setting, for errors.

    Returns
    -------
    str
        The same.

    Raises
    ------
    SettingsError
        If it is none, or if somebody on the way could change the answer.

    Examples
    --------
    >>> check_service("https://checkip.amazonaws.com")
    'https://checkip.amazonaws.com'
    """
    # Whoever changes the answer decides who may knock at the scheduler's door.
    _parse(address, key, schemes=("https",), example="https://checkip.amazonaws.com")
    if "#" in address:
        raise _refuse(key, address, "must have no fragment; leave out what begins with '#'")
    return address


def check_range(text: str, *, key: str = "allow_ingress_from") -> str:
    """Check a range of addresses.

    Parameters
    ----------
    text : str
        The range in CIDR notation, or one address.
    key : str
        The setting, for errors.

    Returns
    -------
    str
        The range in CIDR notation.

    Raises
    ------
    SettingsError
        If it is none, or if it is one address and a range at once.

    Examples
    --------
    >>> check_range("203.0.113.0/24"), check_range("203.0.113.7"), check_range("2001:DB8::/32")
    ('203.0.113.0/24', '203.0.113.7/32', '2001:db8::/32')
    """
    example = "a range of addresses such as '203.0.113.0/24', or one address"
    typed = text.strip()
    if "%" in typed:
        raise _refuse(key, text, f"is no {example.removeprefix('a ')}: leave out the interface")
    try:
        return str(ipaddress.ip_network(typed))
    except ValueError as error:
        try:
            address = ipaddress.ip_interface(typed)
        except ValueError:
            raise _refuse(key, text, f"must be {example}") from error
        raise _refuse(
            key,
            text,
            f"is neither a range nor one address; write '{address.network}' for the range "
            f"or '{address.ip}' for the address",
        ) from error


def reach_everybody(ranges: Iterable[str]) -> bool:
    """Tell whether ranges hold every address that there is, of one kind or the other.

    Parameters
    ----------
    ranges : iterable of str
        Ranges in CIDR notation.

    Returns
    -------
    bool
        Whether they do, together.

    Examples
    --------
    >>> reach_everybody(["0.0.0.0/0"]), reach_everybody(["0.0.0.0/1", "128.0.0.0/1"])
    (True, True)
    >>> reach_everybody(["203.0.113.0/24"])
    False
    """
    networks = [ipaddress.ip_network(each) for each in ranges]
    fours = [each for each in networks if isinstance(each, ipaddress.IPv4Network)]
    sixes = [each for each in networks if isinstance(each, ipaddress.IPv6Network)]
    return any(each.prefixlen == 0 for each in ipaddress.collapse_addresses(fours)) or any(
        each.prefixlen == 0 for each in ipaddress.collapse_addresses(sixes)
    )


def is_loopback(address: str) -> bool:
    """Tell whether an address leads to this machine.

    Parameters
    ----------
    address : str
        A URL.

    Returns
    -------
    bool
        Whether its host is ``localhost`` or a loopback address.

    Examples
    --------
    >>> is_loopback("http://127.0.0.1:8080"), is_loopback("http://127.0.0.1.example.com")
    (True, False)
    """
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parse(address: str, key: str, *, schemes: tuple[str, ...], example: str) -> SplitResult:
    try:
        url = urlsplit(address)
        port, host = url.port, url.hostname
    except ValueError as error:
        raise _refuse(key, address, f"is not an address such as '{example}'") from error
    if "@" in url.netloc:
        raise SettingsError(f"{key} must not contain a user name or password.", key=key)
    if url.scheme not in schemes or not host or port == 0 or re.search(r"\s", address):
        beginnings = " or ".join(f"{scheme}://" for scheme in schemes)
        raise _refuse(key, address, f"must begin with {beginnings} and name a host")
    return url


def _refuse(key: str, value: str, advice: str) -> SettingsError:
    return SettingsError(f"{key} = {value!r} {advice}.", key=key)
