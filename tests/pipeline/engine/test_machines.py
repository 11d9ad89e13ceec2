"""Section `cluster` of a spec: which addresses, sizes and numbers of workers it takes, and the old name of slots."""

import pytest
from pydantic import ValidationError

from pipeline.engine.machines import ClusterSettings, SlotRange, slot_range
from pipeline.settings import RunSettings, old_names

REQUIRED = {"root": "r", "concepts": "c", "prompts": "p"}
CLIENT = "start the run on a node of the cluster and use 'auto' or the head's host:port"
JOB_API = "this is the address of Ray's Job API: use 'auto' or the head's host:port"
FORM = "use 'local', 'auto' or host:port, such as 10.0.0.5:6379"
NUMBER = "use a number, 'all', or a range such as '4..32'"


def cluster(**values):
    return ClusterSettings.model_validate(values)


def refusal(**values):
    """The only problem of some settings: (where, message)."""
    with pytest.raises(ValidationError) as caught:
        cluster(**values)
    [problem] = caught.value.errors()
    return problem["loc"], problem["msg"]


# Addresses


@pytest.mark.parametrize(
    ("address", "remote"),
    [
        (None, False),
        ("local", False),
        ("auto", True),
        ("10.0.0.5:6379", True),
        ("head:1", True),
        ("head.ray-system.svc:65535", True),
        ("[::1]:6379", True),
        ("[2001:db8::A]:6379", True),
        ("localhost:6379", True),
    ],
)
def test_addresses_that_can_be_used(address, remote):
    found = cluster(address=address)
    assert (found.address, found.remote) == (address, remote)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", CLIENT),
        ("ray://[::1]:10001", CLIENT),
        ("http://head:8265", JOB_API),
        ("https://head", JOB_API),
        ("", FORM),
        ("Auto", FORM),
        ("head", FORM),
        ("head:", FORM),
        (":6379", FORM),
        ("head:0", FORM),
        ("head:65536", FORM),
        ("head:70000", FORM),
        ("head:123456", FORM),
        ("head:06379", FORM),
        ("head:port", FORM),
        ("head:6379/", FORM),
        ("head:6379\n", FORM),
        (" head:6379", FORM),
        ("gcs://head:6379", FORM),
        ("::1:6379", FORM),
        ("[::1]", FORM),
        ("[head]:6379", FORM),
        ("[::1:6379", FORM),
    ],
)
def test_addresses_that_cannot_be_used_name_the_form(address, message):
    where, text = refusal(address=address)
    assert where == ("address",)
    assert text.endswith(message)


def test_ray_client_is_refused_with_the_reason():
    assert "Ray Client (ray://) loses the run when the connection breaks" in refusal(address="ray://head:10001")[1]


# Numbers of workers


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (None, SlotRange(1, None)),
        ("all", SlotRange(1, None)),
        (1, SlotRange(1, 1)),
        (64, SlotRange(1, 64)),
        ("4..32", SlotRange(4, 32)),
        ("1..1", SlotRange(1, 1)),
        ("9..10", SlotRange(9, 10)),
    ],
)
def test_slots_are_a_number_all_or_a_range(slots, expected):
    assert slot_range(cluster(slots=slots).slots) == expected


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        (0, "use 1 or more, or leave it out"),
        (-3, "use 1 or more, or leave it out"),
        ("", NUMBER),
        ("4", NUMBER),
        ("some", NUMBER),
        ("ALL", NUMBER),
        ("4-8", NUMBER),
        ("4...8", NUMBER),
        ("4..", NUMBER),
        ("..8", NUMBER),
        ("0..8", NUMBER),
        ("04..8", NUMBER),
        ("8..4", NUMBER),
        ("10..9", NUMBER),
        ("4..8\n", NUMBER),
        ("4 .. 8", NUMBER),
    ],
)
def test_wrong_slots_are_refused(slots, message):
    where, text = refusal(slots=slots)
    assert where == ("slots",)
    assert text.endswith(message)
    with pytest.raises(ValueError, match=message):
        slot_range(slots)


# Sizes of a worker


@pytest.mark.parametrize("gpus", [0, 0.25, 0.5, 1, 2, 8])
def test_gpus_are_a_share_of_one_or_a_whole_number(gpus):
    assert cluster(gpus=gpus).gpus == gpus


@pytest.mark.parametrize("gpus", [1.5, 2.25, 1.0001])
def test_gpus_between_whole_numbers_are_refused(gpus):
    where, text = refusal(gpus=gpus)
    assert where == ("gpus",)
    assert text.endswith("a worker can have a share of one GPU or a whole number of them")


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"gpus": -1}, ("gpus",)),
        ({"gpus": float("inf")}, ("gpus",)),
        ({"gpus": float("nan")}, ("gpus",)),
        ({"cpus": 0}, ("cpus",)),
        ({"cpus": float("inf")}, ("cpus",)),
        ({"join_s": 0}, ("join_s",)),
        ({"join_s": float("inf")}, ("join_s",)),
        ({"accelerator": ""}, ("accelerator",)),
        ({"resources": {"license": 0}}, ("resources", "license")),
        ({"resources": {"license": float("inf")}}, ("resources", "license")),
        ({"labels": {"pool": 1}}, ("labels", "pool")),
        ({"adress": "auto"}, ("adress",)),
    ],
)
def test_values_out_of_range_are_refused(values, where):
    assert refusal(**values)[0] == where


def test_nothing_has_to_be_given():
    found = RunSettings.model_validate(REQUIRED).cluster
    assert found == ClusterSettings()
    assert not found.remote
    assert not found.ship_code
    assert not found.shared_filesystem


# The old name


@pytest.mark.parametrize(
    ("given", "slots"),
    [
        ({"engine": {"slots": 3}}, 3),
        ({"engine": {"slots": 3}, "cluster": {}}, 3),
        ({"engine": {"slots": 3}, "cluster": {"slots": None}}, 3),
        ({"engine": {"slots": 3}, "cluster": {"slots": 5}}, 5),
        ({"engine": {"slots": 3}, "cluster": {"slots": "4..8"}}, "4..8"),
        ({"engine": {"slots": None}, "cluster": {"slots": 5}}, 5),
        ({"engine": {"slots": None}}, None),
    ],
)
def test_engine_slots_is_the_old_name_and_the_new_one_wins(given, slots):
    before = {name: dict(value) for name, value in given.items()}
    found = RunSettings.model_validate({**REQUIRED, **given})
    assert found.cluster.slots == slots
    assert not hasattr(found.engine, "slots")
    assert given == before, "what the caller has is not changed"
    [notice] = old_names(given)
    assert "engine.slots is now called cluster.slots" in notice


def test_the_old_name_keeps_what_stands_beside_the_new_one():
    given = {"engine": {"slots": 3, "threads": 2}, "cluster": {"address": "auto", "gpus": 0.5}}
    found = RunSettings.model_validate({**REQUIRED, **given})
    assert found.cluster == ClusterSettings(address="auto", gpus=0.5, slots=3)
    assert found.engine.threads == 2


def test_a_wrong_value_of_the_old_name_is_refused_as_the_new_one():
    with pytest.raises(ValidationError) as caught:
        RunSettings.model_validate({**REQUIRED, "engine": {"slots": 0}})
    assert [problem["loc"] for problem in caught.value.errors()] == [("cluster", "slots")]


def test_auto_decides_the_number_of_workers_itself():
    assert (cluster(gpus="auto").gpus, cluster(gpus="auto").first_gpus, cluster(gpus=0.5).first_gpus) == (
        "auto",
        1,
        0.5,
    )
    assert cluster(gpus="auto", slots="all").slots == "all"
    where, message = refusal(gpus="auto", slots=4)
    assert where == ()
    assert message.endswith(
        "gpus is 'auto', which decides the number of workers: leave slots out, or give gpus a number"
    )
