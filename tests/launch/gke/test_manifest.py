"""The manifest of a JobSet: what pods are asked for, and what they are told."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import UserError
from launch.gke import manifest, schema
from launch.gke.manifest import Gpus, Request
from launch.gke.slices import Slice, tpu_slice
from launch.job import Job

TWO = tpu_slice("tpu-v6e-slice", "4x4")
IMAGE = "us-docker.pkg.dev/p/r/m@sha256:" + "0" * 64


def job(*words, environment=None):
    """Returns a job."""
    return Job("configs/toy.py", "gs://b/r", words, environment or {})


def request(**changed):
    """Returns a request for slices of TPUs."""
    return Request(**(dict(name="heads", image=IMAGE, machines=TWO) | changed))


def parts(made):
    """Returns the Job, the pod and the container of a manifest."""
    (replicated,) = made["spec"]["replicatedJobs"]
    pods = replicated["template"]["spec"]
    pod = pods["template"]["spec"]
    (container,) = pod["containers"]
    return pods, pod, container


def expanded(word, variables):
    """Returns an argument as Kubernetes puts variables into it.

    After the description in the API: "$$" is "$", "$(NAME)" is the variable's value, and stays as
    it is where there is none.
    """
    found, at = "", 0
    while at < len(word):
        if word[at : at + 2] == "$$":
            found, at = found + "$", at + 2
        elif word[at : at + 2] == "$(" and ")" in word[at:]:
            end = word.index(")", at)
            name = word[at + 2 : end]
            found, at = found + variables.get(name, word[at : end + 1]), end + 1
        else:
            found, at = found + word[at], at + 1
    return found


def test_slices_are_jobs_of_as_many_pods_as_hosts_each_in_a_pool_of_its_own():
    made = manifest.jobset(job(), request(slices=3, spot=True, restarts=4, namespace="lab"))
    pods, pod, container = parts(made)
    assert made["metadata"] == dict(
        name="heads",
        namespace="lab",
        annotations={
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    )
    assert made["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert (pods["parallelism"], pods["completions"], pods["backoffLimit"]) == (4, 4, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["resources"] == dict(limits={"google.com/tpu": "4"})
    assert container["command"] == ["python", "-m", "train"]
    assert container["args"] == job().arguments()
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 4
    # What training ends with at a user's mistake fails the JobSet at once.
    (rule,) = pods["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (of_set,) = made["spec"]["failurePolicy"]["rules"]
    assert (of_set["action"], of_set["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert pod["restartPolicy"] == "Never"  # which a podFailurePolicy needs
    assert pod["hostNetwork"]
    assert "hostNetwork" not in parts(manifest.jobset(job(), request()))[1]


def test_pods_with_gpus_are_told_of_their_place_by_their_index():
    asked = request(machines=Gpus("nvidia-h100-80gb", 3, 8))
    made = manifest.jobset(job("--config.data.path=$(JOB_COMPLETION_INDEX)"), asked)
    pods, pod, container = parts(made)
    assert (pods["completions"], container["resources"]["limits"]) == (3, {"nvidia.com/gpu": "8"})
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert "annotations" not in made["metadata"]
    words = [expanded(word, dict(JOB_COMPLETION_INDEX="2")) for word in container["args"]]
    assert words == [
        "--config=configs/toy.py",
        "--config.data.path=$(JOB_COMPLETION_INDEX)",
        "--workdir=gs://b/r",
        # <JobSet>-<replicated job>-<number of the Job>-<index of the pod>.<subdomain>
        "--coordinator=heads-nodes-0-0.heads:8476",
        "--num_processes=3",
        "--process_id=2",
    ]
    network = made["spec"]["network"]
    assert (network["subdomain"], network["enableDNSHostnames"]) == ("heads", True)
    alone = manifest.jobset(job(), request(machines=Gpus("nvidia-l4", 1, 1)))
    assert parts(alone)[2]["args"][-1] == "--num_processes=1"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_arguments_arrive_as_they_were(text):
    described = job(f"--config.data.path={text}")
    made = manifest.jobset(described, request())
    read = yaml.safe_load(yaml.safe_dump(made, sort_keys=False, width=100))
    assert read == made
    words = [expanded(word, {"HOME": "/root", "": "x"}) for word in parts(read)[2]["args"]]
    assert words == described.arguments()


def test_values_of_the_environment_come_from_a_secret_alone():
    described = job(environment=dict(TOKEN="s3cr3t", B="s3cr3t"))
    with pytest.raises(UserError, match="--env=B, TOKEN would be in the manifest") as error:
        manifest.jobset(described, request())
    assert "s3cr3t" not in str(error.value)
    made = manifest.jobset(described, request(secret="keys"))
    assert "s3cr3t" not in str(made)
    assert parts(made)[2]["env"] == [
        dict(name=name, valueFrom=dict(secretKeyRef=dict(name="keys", key=name)))
        for name in ("B", "TOKEN")
    ]
    whole = manifest.jobset(job(), request(secret="keys"))
    assert parts(whole)[2]["envFrom"] == [dict(secretRef=dict(name="keys"))]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (dict(name="Heads"), "--name="),
        (dict(name="1heads"), "--name="),
        (dict(name="heads-"), "--name="),
        (dict(name="a\nb"), "--name="),
        (dict(name="a" * 48), "at most 47"),
        (dict(image="a b"), "--image="),
        (dict(image="-x"), "--image="),
        (dict(namespace=""), "--namespace="),
        (dict(namespace="a.b"), "--namespace="),
        (dict(secret="a_b"), "--secret="),
        (dict(service_account="a;b"), "--service_account="),
        (dict(machines=Gpus("nvidia-l4", 1, 1), slices=2), "--slices=2 is for TPUs"),
        (dict(machines=Slice("tpu-v6e-slice", "2x4", 8), slices=2), "several hosts"),
    ],
)
def test_what_kubernetes_or_gke_would_refuse_is_refused(changed, said):
    with pytest.raises(UserError, match=said):
        manifest.jobset(job(), request(**changed))


def test_the_longest_name_makes_a_label_of_a_pods_name():
    made = manifest.jobset(job(), request(name="a" * 47))
    name = made["metadata"]["name"]
    assert len(f"{name}-slice-0-3-abcde") == 63


MANIFESTS = [
    (job(), request()),
    (job(environment=dict(A="b")), request(secret="keys", spot=True, service_account="trainer")),
    (job(), request(secret="keys", slices=2)),
    (job(), request(machines=Gpus("nvidia-h100-80gb", 3, 8), spot=True)),
]


@pytest.mark.extras
@pytest.mark.parametrize(("described", "asked"), MANIFESTS)
def test_jobsets_own_schema_takes_them(extra, described, asked):
    extra("kubeflow_trainer_api")
    schema.check(manifest.jobset(described, asked))


@pytest.mark.extras
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda made: made["spec"].update(replicas=2), "spec.replicas"),
        (lambda made: made.update(extra=1), "extra"),
        (lambda made: parts(made)[1].update(hostNetworks=True), "template.spec.hostNetworks"),
        (lambda made: parts(made)[2].update(arg=["a"]), r"containers\[0\].arg"),
        (lambda made: parts(made)[0].update(completions="4"), "completions"),
        (lambda made: parts(made)[2].update(args=[1]), "args"),
        (lambda made: parts(made)[2].pop("name"), r"containers\[0\].name"),
        (lambda made: made["spec"]["replicatedJobs"][0].pop("template"), "template"),
        (lambda made: made["spec"].update(replicatedJobs="a"), "manifest"),
    ],
)
def test_a_manifest_that_is_none_is_refused(extra, change, said):
    extra("kubeflow_trainer_api")
    made = copy.deepcopy(manifest.jobset(job(), request()))
    change(made)
    with pytest.raises(UserError, match=said):
        schema.check(made)
