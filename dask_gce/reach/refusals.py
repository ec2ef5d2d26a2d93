"""What the far end of an IAP tunnel means when it closes or refuses, and what to do about it.

Owns: the close codes, which of them pass while a machine boots, which end a websocket but not the
session, and the sentence that names the remedy. Pure; `far_end` and `passage` ask it.

Sources of the codes: ``SshRelayConstants.cs`` and ``SshRelaySession.cs`` of IAP Desktop, gcloud's
``iap_tunnel_websocket*.py``, RFC 6455 section 7.4. 4054 is in no table of Google's; people who meet
an organisation's policy report it (https://github.com/GoogleCloudPlatform/iap-desktop/issues/866).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from dask_gce.errors import TunnelError

__all__ = ["CUT", "IAP_RANGE", "UNTRUSTED", "Destination", "Meaning", "explain", "meaning_of"]

#: Where IAP's connections to instances come from
#: (https://cloud.google.com/iap/docs/using-tcp-forwarding#create-firewall-rule).
IAP_RANGE = "35.235.240.0/20"
#: The role that may open tunnels (https://cloud.google.com/iap/docs/using-tcp-forwarding#grant-permission).
ROLE = "roles/iap.tunnelResourceAccessor"
#: What RFC 6455 calls a connection that ended without a close frame, or never came about.
CUT = 1006
#: What RFC 6455 calls a certificate that is not trusted.
UNTRUSTED = 1015
#: Longest piece of the far end's own words that is quoted, in characters.
QUOTED = 300


class Meaning(Enum):
    """What a close code says about the session."""

    #: The instance has closed the connection; all that it sent has come before.
    ENDED = "ended"
    #: Only this websocket is over: the session can be resumed on another one.
    CUT = "cut"
    #: So it is while a machine boots: asked again, the far end may connect.
    BOOTING = "booting"
    #: Asking again would not help.
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Destination:
    """One port of one instance, to which a tunnel leads.

    Parameters
    ----------
    project : str
        The project's ID.
    zone : str
        The instance's zone.
    instance : str
        The instance's name.
    port : int
        The TCP port.
    interface : str
        The instance's network interface.

    Examples
    --------
    >>> print(Destination("my-project", "us-central1-a", "dask-1f-scheduler", 8786))
    port 8786 of instance dask-1f-scheduler (zone us-central1-a, project my-project)
    """

    project: str
    zone: str
    instance: str
    port: int
    interface: str = "nic0"

    def __str__(self) -> str:
        return (
            f"port {self.port} of instance {self.instance}"
            f" (zone {self.zone}, project {self.project})"
        )


_FIREWALL: Final = (
    "Nothing listens there, which is so while the machine boots, or the firewall does not let IAP"
    " in. To let it in: gcloud compute firewall-rules create allow-dask-from-iap"
    " --project={to.project} --network=NETWORK --allow=tcp:{to.port}"
    f" --source-ranges={IAP_RANGE}"
)
_PERMISSION: Final = (
    f"Opening tunnels takes the role {ROLE}: gcloud projects add-iam-policy-binding"
    f" {{to.project}} --member=user:YOU --role={ROLE}. The API has to be enabled, too: gcloud"
    " services enable iap.googleapis.com --project={to.project}"
)
_LOST: Final = "Connect again: what was under way in this connection is lost."
_BUG: Final = (
    "The two ends do not agree on the protocol. If it happens again, report it with this message."
)

#: Close code -> what it says of the session, what happened, and what to do.
_CODES: Final[dict[int, tuple[Meaning, str, str]]] = {
    1000: (Meaning.ENDED, "it closed the connection", ""),
    1001: (Meaning.CUT, "it is going away", ""),
    1002: (Meaning.FINAL, "the protocol was broken", _BUG),
    1005: (Meaning.CUT, "it closed without a reason", ""),
    CUT: (Meaning.CUT, "the connection to it broke, or none came about", ""),
    1011: (Meaning.CUT, "it met an error of its own", ""),
    1012: (Meaning.CUT, "it restarts", ""),
    1013: (Meaning.CUT, "it is overloaded", ""),
    1014: (Meaning.CUT, "a gateway on the way to it failed", ""),
    UNTRUSTED: (
        Meaning.FINAL,
        "its certificate is not trusted",
        "Behind a proxy that opens TLS, add the proxy's certificate authority to those that Python"
        " trusts (SSL_CERT_FILE).",
    ),
    4000: (Meaning.CUT, "it met an unknown error", ""),
    4001: (Meaning.FINAL, "it does not know the session any more (SID_UNKNOWN)", _LOST),
    4002: (Meaning.CUT, "it still serves the session's last websocket (SID_IN_USE)", ""),
    4003: (
        Meaning.BOOTING,
        "it cannot connect to the port (FAILED_TO_CONNECT_TO_BACKEND)",
        _FIREWALL,
    ),
    4004: (Meaning.CUT, "it asks who we are once more (REAUTHENTICATION_REQUIRED)", ""),
    4005: (Meaning.FINAL, "it refuses an acknowledgement (BAD_ACK)", _BUG),
    4006: (Meaning.FINAL, "it refuses an acknowledgement (INVALID_ACK)", _BUG),
    4007: (Meaning.FINAL, "it refuses a message (INVALID_WEBSOCKET_OPCODE)", _BUG),
    4008: (Meaning.FINAL, "it refuses a frame (INVALID_TAG)", _BUG),
    # The instance's own end broke, not the relay (SshRelaySession.cs).
    4009: (Meaning.ENDED, "the instance takes no more (DESTINATION_WRITE_FAILED)", ""),
    4010: (Meaning.ENDED, "the instance sends no more (DESTINATION_READ_FAILED)", ""),
    4013: (Meaning.FINAL, "it refuses a frame (INVALID_DATA)", _BUG),
    4033: (
        Meaning.BOOTING,
        "this account may not open the tunnel, or the instance is not there (NOT_AUTHORIZED)",
        _PERMISSION,
    ),
    4047: (
        Meaning.BOOTING,
        "it finds no such instance that runs (LOOKUP_FAILED)",
        "Is it running? gcloud compute instances describe {to.instance} --zone={to.zone}"
        " --project={to.project} --format='value(status)'",
    ),
    4051: (Meaning.FINAL, "it finds the instance no more (LOOKUP_FAILED_RECONNECT)", _LOST),
    4054: (
        Meaning.FINAL,
        "a policy of the organisation forbids it",
        "Ask its administrators to allow IAP TCP forwarding (VPC Service Controls, or an access"
        " level for iap.googleapis.com).",
    ),
    4074: (Meaning.FINAL, "it cannot go back to where we stand (FAILED_TO_REWIND)", _LOST),
}


def meaning_of(code: int) -> Meaning:
    """Tell what a close code says about the session.

    Parameters
    ----------
    code : int
        A websocket's close code, or the HTTP status of a refused handshake.

    Returns
    -------
    Meaning
        What to do: go on, ask again, or give up. A code that is not known is final.

    Examples
    --------
    >>> [meaning_of(code).value for code in (1000, 4003, 4004, 4999, 403, 503)]
    ['ended', 'booting', 'cut', 'final', 'final', 'cut']
    """
    if code in _CODES:
        return _CODES[code][0]
    # Nothing before 1000 is a close code: the handshake was refused. What passes is RFC 9110's.
    passes = code in (408, 425, 429) or 500 <= code < 600
    return Meaning.CUT if passes else Meaning.FINAL


def explain(
    to: Destination, code: int, reason: str = "", *, has_begun: bool = False, proxy: str = ""
) -> TunnelError:
    """Build the error that says why a tunnel is not open, and what to do.

    Parameters
    ----------
    to : Destination
        Where the tunnel leads.
    code : int
        The websocket's close code, or the HTTP status of a refused handshake.
    reason : str
        The far end's own words.
    has_begun : bool
        Whether there was a connection before.
    proxy : str
        The address of the proxy that failed on the way, without a password; empty if none did.

    Returns
    -------
    TunnelError
        The error, with the code.

    Examples
    --------
    >>> to = Destination("my-project", "us-central1-a", "dask-1f-scheduler", 8786)
    >>> print(explain(to, 1012))  # doctest: +ELLIPSIS
    No IAP tunnel to port 8786 of instance dask-1f-scheduler (...): it restarts.
    """
    if code in _CODES:
        _, what, remedy = _CODES[code]
        if proxy:
            what += f", by way of the proxy {proxy} (HTTPS_PROXY)"
    elif proxy and code != 407:
        what, remedy = (
            f"the proxy {proxy} refuses the way to it (HTTP {code})",
            "Ask who runs the proxy to let tunnel.cloudproxy.app:443 through; where there is a way"
            " without it, set NO_PROXY=tunnel.cloudproxy.app.",
        )
    elif code in (400, 401, 403, 404):
        what, remedy = f"it refused the request (HTTP {code})", _PERMISSION
    elif code == 407:
        what, remedy = (
            "the proxy on the way asks for a name and a password (HTTP 407)",
            "Give them in the proxy's address: HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT.",
        )
    elif code < 1000:
        what, remedy = f"it did not accept the websocket (HTTP {code})", ""
    else:
        what, remedy = f"it closed with code {code}", ""
    quoted = _tidy(reason)
    words = f", in its words: {quoted}" if quoted else ""
    subject = f"The IAP tunnel to {to} broke" if has_begun else f"No IAP tunnel to {to}"
    message = f"{subject}: {what}{words}. {remedy.format(to=to)}"
    return TunnelError(message.rstrip(), code=code)


def _tidy(reason: str) -> str:
    """Return words from outside, fit to be shown on a terminal."""
    shown = "".join(each if each.isprintable() else " " for each in reason[:QUOTED])
    return " ".join(shown.split()).rstrip(".")
