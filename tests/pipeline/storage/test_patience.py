"""Retries: transient errors only, with the waits and the budget that are promised."""

import pytest

from pipeline.contract.errors import Code, RowError, Status
from pipeline.storage.objects import MissingObjectError, StorageError
from pipeline.storage.patience import UNIT_S, WAITS_S, Patience, PatientStorage
from tests.support.storage_contract import creates_only_what_is_not_there


class Failing:
    """A call that raises each of `errors` in turn, then returns "done"."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def transient():
    error = StorageError("cannot read x: 503")
    error.__cause__ = OSError("503 slow down")
    return error


def caused_by(cause):
    error = StorageError("cannot read x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("error", [transient, lambda: RowError(Code.STORAGE, "503", status=Status.FAILED)])
@pytest.mark.parametrize("failures", [0, 1, 3, len(WAITS_S)])
def test_transient_error_is_retried_after_each_wait(error, failures):
    waits, call = [], Failing(*(error() for _ in range(failures)))
    assert Patience(waits.append)(call) == "done"
    assert waits == list(WAITS_S[:failures])
    assert call.calls == failures + 1


def test_error_of_the_last_attempt_is_raised():
    errors = [transient() for _ in range(len(WAITS_S) + 1)]
    waits, call = [], Failing(*errors)
    with pytest.raises(StorageError) as caught:
        Patience(waits.append)(call)
    assert caught.value is errors[-1]
    assert waits == list(WAITS_S)


@pytest.mark.parametrize(
    "error",
    [
        MissingObjectError("there is no x"),
        caused_by(PermissionError("denied")),
        caused_by(FileExistsError("a folder")),
        StorageError("larger than the limit"),
        RowError(Code.IMAGE_MISSING, "there is no x.png"),
    ],
    ids=["missing", "denied", "folder", "no cause", "row"],
)
def test_answer_is_raised_at_once(error):
    waits, call = [], Failing(error)
    with pytest.raises(type(error)) as caught:
        Patience(waits.append)(call)
    assert caught.value is error
    assert (waits, call.calls) == ([], 1)


def test_budget_is_shared_by_calls_until_it_is_renewed():
    waits = []
    patience = Patience(waits.append, budget_s=2.0)
    with pytest.raises(StorageError):
        patience(Failing(*(transient() for _ in range(9))))
    assert waits == [0.5, 1.0]  # the next wait, of two seconds, would exceed the half second that is left
    assert patience(Failing(transient())) == "done"
    with pytest.raises(StorageError):
        patience(Failing(transient()))
    patience.renew()
    assert patience(Failing(transient(), transient())) == "done"
    assert waits == [0.5, 1.0, 0.5, 0.5, 1.0]
    assert sum(waits) < UNIT_S


def test_patient_storage_keeps_the_contract_of_storage(tmp_path):
    waits = []
    storage = PatientStorage(str(tmp_path / "root"), None, Patience(waits.append))
    creates_only_what_is_not_there(storage)
    storage.write("a/x", b"1")
    assert (storage.read("a/x"), storage.size("a/x"), storage.exists("a/y")) == (b"1", 1, False)
    storage.delete("a/x")
    with pytest.raises(MissingObjectError):
        storage.read("a/x")
    assert waits == []
