"""RayJobs, and the schedules that create them."""

import subprocess

import pytest
import yaml

from jobs.spec_file import SpecError
from pipeline.settings import RunSettings
from tests.jobs.deploy.cases import OPTIONS, QUEUED, documents, of_kind


def cluster(text):
    return of_kind(text, "RayJob")["spec"]["rayClusterSpec"]


def bounds(text):
    groups = cluster(text)["workerGroupSpecs"]
    return {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in groups}


def created(text):
    """The files that the pod of the CronJob has."""
    (files,) = [each["data"] for each in documents(text) if "rayjob.yaml" in each.get("data", {})]
    return files


def test_the_head_finds_the_spec_where_the_entrypoint_looks_for_it(rendered):
    text = rendered("rayjob")
    spec = of_kind(text, "RayJob")["spec"]
    assert spec["entrypoint"] == "perfusion run /etc/perfusion/spec.yaml --address auto --json"
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    config = of_kind(text, "ConfigMap")
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/etc/perfusion"
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    RunSettings.model_validate(yaml.safe_load(config["data"]["spec.yaml"]))


@pytest.mark.parametrize(
    ("slots", "options", "expected"),
    [
        ("4..32", {}, {"on-demand": (4, 32)}),
        (6, {}, {"on-demand": (0, 6)}),
        ("4..32", {"spot": {"max": 24}}, {"on-demand": (4, 8), "spot": (0, 24)}),
        ("4..32", {"spot": {"max": 40, "min": 2}}, {"spot": (2, 40)}),
        ("all", {"on_demand": {"max": 5}}, {"on-demand": (0, 5)}),
        ("4..32", {"on_demand": {"min": 1, "max": 9}}, {"on-demand": (1, 9)}),
    ],
)
def test_workers_follow_the_slots_of_the_spec(rendered, slots, options, expected):
    text = rendered("rayjob", {"image": "i", **options}, cluster={"slots": slots, "gpus": 1})
    assert bounds(text) == expected


def test_workers_that_share_a_gpu_share_a_pod(rendered):
    text = rendered("rayjob", {"image": "i"}, cluster={"slots": "3..9", "gpus": 0.25, "cpus": 2})
    assert bounds(text) == {"on-demand": (1, 3)}
    pod = cluster(text)["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert pod["resources"]["limits"] == {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": "1"}


def test_the_travelling_spec_states_what_an_empty_cluster_cannot_show(rendered):
    text = rendered("rayjob", {"image": "i", "on_demand": {"max": 5}}, cluster={"address": "10.0.0.5:6379"})
    spec = yaml.safe_load(of_kind(text, "ConfigMap")["data"]["spec.yaml"])
    assert spec["cluster"] == {"gpus": 1.0, "cpus": 1.0, "slots": "1..5"}
    text = rendered("rayjob", {"image": "i", "on_demand": {"max": 5}}, cluster={}, engine={"device": "cpu"})
    spec = yaml.safe_load(of_kind(text, "ConfigMap")["data"]["spec.yaml"])
    assert spec["cluster"] == {"gpus": 0.0, "cpus": 4.0, "slots": "1..5"}


def test_the_autoscaler_knows_what_a_node_will_have(rendered):
    text = rendered("rayjob", cluster={"slots": "1..4", "accelerator": "L4", "resources": {"licence": 0.5}})
    assert cluster(text)["workerGroupSpecs"][0]["resources"] == {"accelerator_type:L4": "1", "licence": "1"}
    assert cluster(rendered("rayjob"))["workerGroupSpecs"][0]["labels"] == {"team": "shop"}


def test_a_pod_lives_longer_than_the_run_needs_to_stop(rendered):
    spec = of_kind(rendered("rayjob", policy={"drain_s": 45}), "RayJob")["spec"]
    wait_s = int(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait_s > 45
    groups = (spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"])
    assert all(group["template"]["spec"]["terminationGracePeriodSeconds"] > wait_s for group in groups)


def test_a_queue_gets_a_suspended_job_of_fixed_size(rendered):
    job = of_kind(rendered("rayjob", QUEUED), "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "low"
    assert job["spec"]["suspend"] is True
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert bounds(rendered("rayjob", QUEUED)) == {"on-demand": (8, 8), "spot": (24, 24)}
    plain = of_kind(rendered("rayjob"), "RayJob")
    assert (plain["spec"]["suspend"], plain["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]) == (False, True)


def test_a_raycronjob_in_a_queue_is_refused(rendered):
    with pytest.raises(SpecError, match="use --kind cronjob"):
        rendered("raycronjob", QUEUED)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (3, 0), (4, 4)])
def test_rows_that_are_not_ok_can_be_accepted(rendered, tmp_path, code, expected):
    text = rendered("rayjob", {**OPTIONS, "failed_rows": "accept"})
    assert of_kind(text, "RayJob")["spec"]["entrypoint"] == "bash /etc/perfusion/run.sh"
    script = of_kind(text, "ConfigMap")["data"]["run.sh"]
    program(tmp_path, "perfusion", f'echo "$@" > {tmp_path}/words; exit {code}')
    assert run_script(script, tmp_path, "bash").returncode == expected
    assert (tmp_path / "words").read_text() == "run /etc/perfusion/spec.yaml --address auto --json\n"


def test_the_cronjob_never_runs_twice(rendered):
    text = rendered("cronjob")
    spec = of_kind(text, "CronJob")["spec"]
    assert (spec["concurrencyPolicy"], spec["timeZone"]) == ("Forbid", "Europe/Berlin")
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    job = yaml.safe_load(created(text)["rayjob.yaml"])
    assert job["metadata"]["generateName"] == "spring-catalog-"
    assert "name" not in job["metadata"]
    assert " rerender " in job["spec"]["entrypoint"]


def test_the_cronjob_s_pod_may_create_and_read_rayjobs_and_nothing_else(rendered):
    text = rendered("cronjob")
    assert of_kind(text, "Role")["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    account = of_kind(text, "ServiceAccount")["metadata"]
    assert of_kind(text, "RoleBinding")["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    pod = of_kind(text, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["name"]


@pytest.mark.parametrize(
    ("answers", "code", "asked"),
    [
        (["", "Initializing ", "Running RUNNING", "Complete SUCCEEDED"], 0, 4),
        (["Running RUNNING", "Failed FAILED"], 1, 2),
        (["Retrying ", "Suspended ", "Complete STOPPED"], 1, 3),
        (["ValidationFailed "], 1, 1),
        (["ERROR"] * 19 + ["Complete SUCCEEDED"], 0, 20),
        (["ERROR"] * 19 + ["Running RUNNING"] + ["ERROR"] * 20 + ["Complete SUCCEEDED"], 1, 40),
    ],
)
def test_the_cronjob_s_pod_ends_as_the_rayjob_does(rendered, tmp_path, answers, code, asked):
    (tmp_path / "answers").write_text("\n".join(answers) + "\n")
    program(tmp_path, "sleep", "true")
    program(
        tmp_path,
        "kubectl",
        f"""
        cd {tmp_path}
        if [ "$1" = create ]; then echo rayjob.ray.io/night-x1; exit; fi
        [ "$2" = rayjob.ray.io/night-x1 ] || exit 9
        echo x >> asked
        answer=$(sed -n "$(wc -l < asked)p" answers)
        [ "$answer" != ERROR ] || exit 1
        echo "$answer"
        """,
    )
    done = run_script(created(rendered("cronjob"))["start.sh"], tmp_path, "sh")
    assert done.returncode == code
    assert len((tmp_path / "asked").read_text().split()) == asked


def test_the_cronjob_s_pod_fails_when_it_creates_nothing(rendered, tmp_path):
    program(tmp_path, "kubectl", "exit 1")
    assert run_script(created(rendered("cronjob"))["start.sh"], tmp_path, "sh").returncode == 1


def program(folder, name, script):
    file = folder / "bin" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def run_script(script, folder, shell):
    """Run a script that finds the programs of a folder first."""
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin"}
    words = [shell, "-c", script]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
