"""Addresses of photos: made absolute, refused, printed without secrets, and kept within the allowed prefixes."""

import pytest

from pipeline.contract.errors import Code, RowError
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.uris import check_allowed, locate, redact, resolve
from tests.support.photos import SIGNED, code_of

BASE = "s3://bucket/shop"


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("a/b.png", BASE, "s3://bucket/shop/a/b.png"),
        ("./a.png", BASE + "/", "s3://bucket/shop/a.png"),
        ("a..b/c...png", BASE, "s3://bucket/shop/a..b/c...png"),
        ("/data/x.png", BASE, "file:///data/x.png"),
        ("file:///data//./x.png", BASE, "file:///data/x.png"),
        ("S3://Other/X.png", BASE, "s3://Other/X.png"),
        ("memory:///x.png", BASE, "memory://x.png"),
        (
            "az://container@account.dfs.core.windows.net/x.png",
            BASE,
            "az://container@account.dfs.core.windows.net/x.png",
        ),
        ("https://cdn.example/x.png?w=5", BASE, "https://cdn.example/x.png?w=5"),
        ("photo one é.png", BASE, "s3://bucket/shop/photo one é.png"),
    ],
)
def test_addresses_become_absolute(uri, base, expected):
    assert resolve(uri, base) == expected
    assert resolve(expected, "file:///elsewhere") == expected


@pytest.mark.parametrize(
    "uri",
    [
        "../x.png",
        "a/../x.png",
        "s3://bucket/../other/x.png",
        "https://cdn.example/a/%2e%2e/x.png",
        "a\\..\\x.png",
        "a\x00.png",
        "a\n.png",
        "ftp://host/x.png",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "file:x.png",
        "file:/data/x.png",
        "file:photos/x.png",
        "s3:/bucket/x.png",
        "s3:bucket/x.png",
        "https:/cdn.example/x.png",
        "S3:/bucket/x.png",
        "%2e%2e/x.png",
        "file:///photos/%2E%2e/x.png",
        "file://host/x.png",
        "zip://x.png::s3://bucket/a.zip",
        "s3://AKIA:hunter2@bucket/x.png",
        "https://user:hunter2@cdn.example/x.png",
        "https://cdn.example/x.png?X-Amz-Signature=hunter2",
        "https://cdn.example/x.png?a=1&sig=hunter2",
    ],
)
def test_addresses_that_are_refused(uri):
    with pytest.raises(RowError) as caught:
        resolve(uri, BASE)
    assert caught.value.code is Code.URI_NOT_ALLOWED
    assert "hunter2" not in str(caught.value)
    assert "\x00" not in str(caught.value)
    assert "hunter2" not in redact(uri)


def test_a_slash_that_is_missing_is_named():
    for uri, words in {
        "file:photos/x.png": "'file:' must be followed by two slashes; write file:///folder/name, or the path alone",
        "file:/x.png": "'file:' must be followed by two slashes",
        "s3:/bucket/x.png": "'s3:' must be followed by two slashes; write s3://bucket/name",
        "mailto:x": "it is neither a path nor a URI",
    }.items():
        with pytest.raises(RowError) as caught:
            resolve(uri, BASE)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "printed"),
    [
        ("写真/カップ 1.png", "写真/カップ 1.png"),
        ("fotos/Tässchen ß.png", "fotos/Tässchen ß.png"),
        ("emoji 🫖.png", "emoji 🫖.png"),
        ("a\nb\x1b[2J.png", "a\\nb\\x1b[2J.png"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("lone \ud800.png", "lone \\ud800.png"),
        ("it's.png", "it's.png"),
        ("https://user:hunter2@cdn.example/é.png?sig=hunter2", "https://cdn.example/é.png"),
    ],
)
def test_addresses_are_printed_as_people_write_them(uri, printed):
    assert redact(uri) == printed
    redact(uri).encode()


def test_a_percent_sign_is_decoded_only_where_nothing_else_is_there(tmp_path):
    names = ("my photo.png", "50%20off.png", "写真.png", "a%b.png")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path.parent / "outside.png").write_bytes(b"x")
    base = f"file://{tmp_path}"
    cases = {
        f"{base}/my%20photo.png": "my photo.png",
        "my%20photo.png": "my photo.png",  # a plain path, where no file has the name as it is written
        f"{base}/%E5%86%99%E7%9C%9F.png": "写真.png",
        f"{base}/a%b.png": "a%b.png",
        "50%20off.png": "50%20off.png",
        f"{base}/none%20there.png": "none%20there.png",
        f"{base}/x%2F..%2F..%2Foutside.png": "x%2F..%2F..%2Foutside.png",
        f"{base}/my%20photo.png%00": "my%20photo.png%00",
    }
    for uri, name in cases.items():
        assert locate(resolve(uri, base)) == f"{base}/{name}", uri
    (tmp_path / "my%20photo.png").write_bytes(b"y")
    assert locate(f"{base}/my%20photo.png") == f"{base}/my%20photo.png"
    assert locate("s3://bucket/my%20photo.png") == "s3://bucket/my%20photo.png"


@pytest.mark.parametrize("query", SIGNED, ids=lambda query: query.partition("=")[0])
def test_a_presigned_address_has_its_own_message_and_its_setting(query):
    uri = f"https://cdn.example/img/x y.png?{query}"
    with pytest.raises(RowError, match=r"pre-signed address.*inputs\.presigned") as caught:
        resolve(uri, BASE)
    assert "hunter2" not in str(caught.value)
    assert resolve(uri, BASE, presigned=True) == uri
    check_allowed(uri, ("https://cdn.example/img",))
    assert code_of(check_allowed, uri, ()) is Code.URI_NOT_ALLOWED
    for other in (f"s3://bucket/x.png?{query}", f"https://user:hunter2@cdn.example/x.png?{query}"):
        with pytest.raises(RowError, match="carries credentials") as caught:
            resolve(other, BASE, presigned=True)
        assert "hunter2" not in str(caught.value)


def test_allowed_prefixes_are_whole_folders(tmp_path):
    allow = InputLimits(allow=("s3://bucket/photos/", "https://cdn.example/img", str(tmp_path))).allow
    for uri in ("s3://bucket/photos/x.png", "https://cdn.example/img/x.png", f"file://{tmp_path}/x.png"):
        check_allowed(uri, allow)
    for uri in ("s3://bucket/photos-secret/x.png", "s3://bucket/x", "https://cdn.example.evil/img/x", "file:///etc/x"):
        assert code_of(check_allowed, uri, allow) is Code.URI_NOT_ALLOWED
    check_allowed("s3://root/inputs/ab/x", InputLimits(allow=allow).allowing("s3://root/inputs/").allow)
    assert InputLimits().allowing("s3://root").allow == ()
    check_allowed("gs://anything/x", ())
    assert code_of(check_allowed, "http://cdn.example/x", ()) is Code.URI_NOT_ALLOWED
    check_allowed("http://any.where/x", ("http://",))
    check_allowed("file:///x", ("file://",))
