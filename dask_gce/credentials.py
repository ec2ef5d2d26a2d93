"""Google credentials and the project they belong to.

Owns which credentials a cluster uses (Application Default Credentials, none or a token for a local
Compute Engine) and where the project is looked for when the settings do not tell it: the
credentials' file, gcloud's configuration, the metadata server, in that order. Settings come before
that, in `settings`; refreshing tokens is left to google-auth.

All functions read files or ask servers: call them in a thread, never on the event
loop. google-auth is imported when they are called.

Sources: `Application Default Credentials
<https://cloud.google.com/docs/authentication/application-default-credentials>`_ and `gcloud's
configurations <https://cloud.google.com/sdk/docs/configurations>`_.
"""

from __future__ import annotations

import configparser
import functools
import http.client
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dask_gce import names
from dask_gce.errors import CredentialsError, SettingsError, TransportError
from dask_gce.settings import Settings
from dask_gce.sources import environment

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["SCOPE", "access_token", "discover_project", "load_credentials"]

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"

# Elsewhere than on Google's machines nothing answers at this address, and some networks swallow
# packets to it: enough for a metadata server, short enough for a laptop.
_METADATA_PATIENCE: Final = 2.0
_METADATA_HOST: Final = "169.254.169.254"
_METADATA_VARIABLES: Final = ("GCE_METADATA_HOST", "GCE_METADATA_IP")
_MAX_TOKEN: Final = 16_384
#: Seconds that a token server may take for each part of its answer.
_TOKEN_PATIENCE: Final = 30.0
_LOGIN: Final = "gcloud auth application-default login"
_CREDENTIALS_VARIABLE: Final = "GOOGLE_APPLICATION_CREDENTIALS"


def load_credentials(settings: Settings) -> Credentials:
    """Load the credentials for calls to the Compute API; blocks, so call it in a thread.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.

    Returns
    -------
    google.auth.credentials.Credentials
        Application Default Credentials with the scope ``cloud-platform``. For a local Compute
        Engine the token of ``api_token_file``, or anonymous credentials.

    Raises
    ------
    CredentialsError
        If there are none, or if they cannot be read; with the command that repairs it.
    """
    if settings.is_local:
        return _local_credentials(settings)
    import google.auth
    import google.auth.exceptions

    # google.auth.default would run gcloud to learn the project of a user's own login.
    user = _user_credentials()
    if user is not None:
        return user
    # Without a file it would ask for a metadata server three times, with pauses and warnings.
    if _credentials_file() is None and _ask_metadata("/") is None:
        raise CredentialsError(
            f'No Google credentials were found. Run "{_LOGIN}", or name the key file of a service '
            f"account in {_CREDENTIALS_VARIABLE}. (Without an account: set api_endpoint to a local "
            "Compute Engine.)"
        )
    try:
        found, _ = google.auth.default(scopes=[SCOPE])
    except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
        raise _broken(str(_credentials_file() or "of this machine"), error) from error
    credentials: Credentials = found
    return credentials


def access_token(credentials: Credentials) -> str | None:
    """Return an access token that is valid for some minutes; blocks, so call it in a thread.

    Parameters
    ----------
    credentials : google.auth.credentials.Credentials
        The credentials; those of `load_credentials`, not to be used by two threads at a time.

    Returns
    -------
    str or None
        The token; None for anonymous credentials.

    Raises
    ------
    CredentialsError
        If the credentials are not accepted, or no more.
    TransportError
        If whoever gives out tokens does not answer.
    """
    if not credentials.valid:
        import google.auth.exceptions
        import requests
        from google.auth.transport.requests import Request

        with requests.Session() as session:
            # google-auth's constructors carry no types.
            make: Any = Request
            ask = functools.partial(make(session=session), timeout=_TOKEN_PATIENCE)
            refresh: Any = credentials.refresh
            try:
                refresh(ask)
            except google.auth.exceptions.TransportError as error:
                raise TransportError("The server of access tokens does not answer.") from error
            except google.auth.exceptions.GoogleAuthError as error:
                raise _broken("of this computer", error) from error
    token: str | None = credentials.token
    return token


def discover_project(settings: Settings) -> str:
    """Find the project to work in; blocks, so call it in a thread.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.

    Returns
    -------
    str
        The project ID from the settings, the credentials, gcloud's configuration or the metadata
        server: the first that tells it.

    Raises
    ------
    CredentialsError
        If none of them tells it, or if a file among them cannot be read.
    """
    if settings.project is not None:
        return settings.project
    for where, look in (
        ("the credentials", _project_of_credentials),
        ("gcloud's configuration", _project_of_gcloud),
        ("the metadata server", _project_of_metadata),
    ):
        project = look()
        if project:
            try:
                return names.check_project(project)
            except SettingsError as error:
                raise CredentialsError(f"From {where}: {error.message} {_SET_PROJECT}") from error
    raise CredentialsError(
        "No project was found: not in the settings, GOOGLE_CLOUD_PROJECT, the credentials, "
        f"gcloud's configuration or a metadata server. {_SET_PROJECT}"
    )


_SET_PROJECT: Final = (
    'Run "gcloud config set project PROJECT", or set project (DASK_GCE__PROJECT) '
    "to one that gcloud projects list shows."
)


def _local_credentials(settings: Settings) -> Credentials:
    from google.auth.credentials import AnonymousCredentials
    from google.oauth2.credentials import Credentials as Token

    # google-auth's constructors carry no types.
    anonymous: Any = AnonymousCredentials
    bearer: Any = Token
    credentials: Credentials = (
        anonymous()
        if settings.api_token_file is None
        else bearer(_read_token(Path(settings.api_token_file).expanduser()))
    )
    return credentials


def _read_token(path: Path) -> str:
    try:
        # Without O_NONBLOCK opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            # Asked of the open file, so that nobody can exchange it between look and read.
            mode = os.fstat(descriptor).st_mode
            content = file.read(_MAX_TOKEN + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise CredentialsError(
            f"api_token_file {path} cannot be read: {error.strerror}. "
            "Name the file that the local Compute Engine wrote."
        ) from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise CredentialsError(
            f"api_token_file {path} can be read by others; run: chmod 600 {path}"
        )
    token = content.strip()
    # What else could end the header line and begin another.
    if len(content) > _MAX_TOKEN or not re.fullmatch(rb"[!-~]+", token):
        raise CredentialsError(
            f"api_token_file {path} does not hold a token: one word in ASCII is expected."
        )
    return token.decode("ascii")


def _credentials_file() -> Path | None:
    """Return the file Application Default Credentials are read from, if there is one."""
    named = environment(_CREDENTIALS_VARIABLE)
    if named:
        return Path(named[_CREDENTIALS_VARIABLE])
    path = _gcloud_folder() / "application_default_credentials.json"
    return path if path.is_file() else None


def _gcloud_folder() -> Path:
    named = environment("CLOUDSDK_CONFIG")
    return Path(named["CLOUDSDK_CONFIG"]) if named else Path("~/.config/gcloud").expanduser()


def _read_credentials_file() -> dict[str, Any]:
    path = _credentials_file()
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(str(path), error) from error
    if not isinstance(content, dict):
        raise _broken(str(path), ValueError("not a JSON object"))
    return content


def _user_credentials() -> Credentials | None:
    from google.oauth2.credentials import Credentials as User

    content = _read_credentials_file()
    if content.get("type") != "authorized_user":
        return None
    try:
        # google-auth's constructors carry no types.
        make: Any = User.from_authorized_user_info
        credentials: Credentials = make(content).with_quota_project_from_environment()
    except (ValueError, AttributeError) as error:
        raise _broken(str(_credentials_file()), error) from error
    return credentials


def _project_of_credentials() -> str | None:
    content = _read_credentials_file()
    # Keys of service accounts name it project_id, those of Distributed Cloud project.
    for name in ("project_id", "project"):
        if isinstance(content.get(name), str):
            return str(content[name])
    if content.get("type") != "external_account":
        return None
    import google.auth
    import google.auth.exceptions

    try:
        # A federated identity does not know its project; its token exchange tells it.
        _, project = google.auth.default(scopes=[SCOPE])
    except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
        raise _broken(str(_credentials_file()), error) from error
    return project


def _project_of_gcloud() -> str | None:
    variables = environment("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_ACTIVE_CONFIG_NAME")
    if "CLOUDSDK_CORE_PROJECT" in variables:
        return variables["CLOUDSDK_CORE_PROJECT"]
    folder = _gcloud_folder()
    path = folder / "active_config"
    try:
        active = variables.get("CLOUDSDK_ACTIVE_CONFIG_NAME") or path.read_text("utf-8").strip()
    except FileNotFoundError:
        active = "default"
    except (OSError, ValueError) as error:
        raise _broken_gcloud(path, error) from error
    path = folder / "configurations" / f"config_{active}"
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text("utf-8"), source=str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, configparser.Error) as error:
        raise _broken_gcloud(path, error) from error
    return parser.get("core", "project", fallback=None)


def _project_of_metadata() -> str | None:
    return _ask_metadata("/computeMetadata/v1/project/project-id")


def _ask_metadata(path: str) -> str | None:
    """Ask the metadata server once; None if there is none."""
    if environment("NO_GCE_CHECK").get("NO_GCE_CHECK", "").lower() == "true":
        return None
    # By address: looking up a name may take longer than any time limit of ours.
    host = next(iter(environment(*_METADATA_VARIABLES).values()), _METADATA_HOST)
    connection = http.client.HTTPConnection(host, timeout=_METADATA_PATIENCE)
    try:
        connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        # Somebody else's router may answer at this address; Google's server signs its answers.
        if answer.status != 200 or answer.headers.get("Metadata-Flavor") != "Google":
            return None
        return answer.read(1024).decode("ascii", "replace").strip()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _broken(place: str, error: Exception) -> CredentialsError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _shown(error)
    named = environment(_CREDENTIALS_VARIABLE)
    remedy = (
        f"Correct {_CREDENTIALS_VARIABLE}, or unset it and run" if named else "Make new ones with"
    )
    return CredentialsError(
        f'The Google credentials {place} cannot be used: {reason}. {remedy} "{_LOGIN}".'
    )


def _shown(error: Exception) -> str:
    # A decoder's or parser's full message may quote the file, and with it a key.
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "it is not JSON"
    return str(error.args[0] if error.args else type(error).__name__).rstrip(".")


def _broken_gcloud(path: Path, error: Exception) -> CredentialsError:
    reason = getattr(error, "strerror", None) or "it is not a gcloud configuration"
    return CredentialsError(
        f"gcloud's configuration {path} cannot be read: {reason}. {_SET_PROJECT}"
    )
