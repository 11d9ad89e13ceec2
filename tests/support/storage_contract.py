"""What every storage must do, wherever it is: the tests of local storage and of object stores both ask for it."""


def creates_only_what_is_not_there(storage):
    """An empty object is one too."""
    assert storage.create("lease/1.json", b"first")
    assert not storage.create("lease/1.json", b"second")
    assert not storage.create("lease/1.json", b"")
    assert storage.read("lease/1.json") == b"first"
    assert storage.create("lease/empty", b"")
    assert not storage.create("lease/empty", b"x")
    assert storage.read("lease/empty") == b""
