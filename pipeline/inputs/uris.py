"""Addresses of photos: made absolute, checked against the allowed prefixes, safe to print.

An address is untrusted text from a manifest. It must not climb (`..`), chain filesystems (`::`), hold credentials, or
leave the allowed prefixes, not even through a local symbolic link. A pre-signed web address is a secret: it is opened
only if the settings allow it, and printed without its query.
"""

import os
import re
from urllib.parse import unquote

from pipeline.contract.errors import Code, RowError
from pipeline.storage.objects import SCHEMES

_OPEN_SCHEMES = ("file", "memory", "s3", "gs", "az")
_WEB = ("http", "https")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SECRET = re.compile(
    r"[?&](x-(amz|goog)-(signature|credential|security-token)|signature|awsaccesskeyid|googleaccessid|sig|token)=",
    re.IGNORECASE,
)


def redact(uri: str) -> str:
    """`uri` for a message: without user information and query, cut to 200 characters, unprintable ones escaped."""
    scheme, separator, rest = uri.partition("://")
    netloc, slash, path = rest.partition("/")
    plain = f"{scheme}://{netloc.rpartition('@')[2]}{slash}{path.partition('?')[0]}" if separator else uri
    plain = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in plain)
    return plain if len(plain) <= 200 else plain[:197] + "..."


def is_web(uri: str) -> bool:
    """Whether a URI is a web address, which has no version and no listing."""
    return uri.partition("://")[0].lower() in _WEB


def carries_credentials(uri: str) -> bool:
    """Whether a URI holds a password, a key or a signature; `az://container@account` does not."""
    scheme, separator, rest = uri.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    named = bool(at) and (scheme.lower() not in ("az", "abfs", "abfss") or ":" in user)
    return bool(separator) and (named or bool(_SECRET.search(rest)))


def is_signed(uri: str) -> bool:
    """Whether a web address holds a signature or a token in its query, and no user or password."""
    rest = uri.partition("://")[2]
    return is_web(uri) and bool(_SECRET.search(rest)) and "@" not in rest.partition("/")[0]


def locate(uri: str) -> str:
    """The URI of an existing local file, with `%20` and the like decoded only if no file has the literal name.

    A decoded name must not climb or hold control characters; any other URI is returned unchanged.
    """
    path = uri.removeprefix("file://")
    if path == uri or "%" not in path or os.path.lexists(path):
        return uri
    decoded = unquote(path)
    if _CONTROL.search(decoded) or ".." in re.split(r"[/\\]", decoded) or not os.path.lexists(decoded):
        return uri
    return f"file://{os.path.normpath(decoded)}"


def resolve(uri: str, base: str, *, presigned: bool = False) -> str:
    """Make an address absolute.

    Args:
        uri: the manifest's text: a URI, or a path that may be relative.
        base: URI of the folder that a relative path starts from.
        presigned: whether a web address may have a signature.

    Raises:
        RowError: URI_NOT_ALLOWED for `..`, control characters, credentials, chained or unknown schemes.
    """
    if not uri.strip():
        raise RowError(Code.MISSING_VALUE, "the address is empty: give a path or URI of a picture")
    if _CONTROL.search(uri) or "::" in uri:
        raise _refusal(uri, "it holds a control character or '::'", "give one plain path or URI")
    if "://" not in uri:
        uri = _from_path(uri, base)
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise _refusal(uri, f"{scheme!r} is an unknown scheme", f"use one of {', '.join(SCHEMES)}")
    # A server may decode percent signs and turn backslashes before it resolves '..'.
    if any(unquote(segment) == ".." for segment in re.split(r"[/\\]", rest)):
        raise _refusal(uri, "it climbs with '..'", "write the path without it")
    if is_signed(uri):
        if not presigned:
            remedy = "set inputs.presigned and list its prefix in inputs.allow, or copy the picture to your storage"
            raise _refusal(uri, "it is a pre-signed address, which is a secret and expires", remedy)
    elif carries_credentials(uri):
        raise _refusal(uri, "it carries credentials", "remove them and set them in the environment")
    if scheme == "file":
        if not rest.startswith("/"):
            raise _refusal(uri, "a file URI must be absolute", "write file:///folder/name or a relative path")
        rest = os.path.normpath("/" + rest.lstrip("/"))
    elif scheme == "memory":
        rest = rest.lstrip("/")
    return f"{scheme}://{rest}"


def _from_path(uri: str, base: str) -> str:
    if found := _SCHEME.match(uri):
        scheme = found[1].lower()
        if scheme in SCHEMES:
            right = "file:///folder/name, or the path alone" if scheme == "file" else f"{scheme}://bucket/name"
            raise _refusal(uri, f"'{scheme}:' must be followed by two slashes", f"write {right}")
        raise _refusal(uri, "it is neither a path nor a URI", f"use {', '.join(_OPEN_SCHEMES)}:// or a path ('./...')")
    return f"file://{uri}" if uri.startswith("/") else f"{base.rstrip('/')}/{uri.removeprefix('./')}"


def check_allowed(uri: str, allow: tuple[str, ...]) -> None:
    """Refuse an absolute URI that lies under none of the prefixes; without prefixes, only http and https.

    Raises:
        RowError: URI_NOT_ALLOWED.
    """
    scheme = uri.partition("://")[0]
    if not allow and scheme in _OPEN_SCHEMES:
        return
    if not allow:
        raise _refusal(
            uri, f"{scheme} is not enabled", "copy the picture to your storage or list its prefix in inputs.allow"
        )
    real = _real(uri)
    if not any(real == prefix or real.startswith(prefix.rstrip("/") + "/") for prefix in map(_real, allow)):
        raise _refusal(
            uri,
            "it lies outside the allowed prefixes",
            f"move it under {' or '.join(allow)}, or add its prefix to inputs.allow",
        )


def _real(uri: str) -> str:
    """A local URI with its symbolic links resolved; any other URI unchanged."""
    scheme, _, rest = uri.partition("://")
    return f"file://{os.path.realpath(rest)}" if scheme == "file" and rest else uri


def _refusal(uri: str, reason: str, remedy: str) -> RowError:
    return RowError(Code.URI_NOT_ALLOWED, f"'{redact(uri)}' is not allowed: {reason}; {remedy}")
