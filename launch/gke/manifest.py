"""The manifest of a JobSet: the same job in Kubernetes' words, which hold no secret's value.

Each slice is a Job of as many pods as it has hosts, in a node pool of its own. GKE tells pods and
slices of their places; pods with GPUs are told by their index. Arguments are a list that no shell
sees. When a pod fails, all are started again and go on from what was saved, unless it was a user's
mistake.

Sources: https://jobset.sigs.k8s.io/docs/ (concepts, failure policy);
https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice and the page on GPUs;
https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
"""

import dataclasses
import re
from collections.abc import Sequence

from configs.errors import UserError
from launch.gke.slices import Slice
from launch.job import Job
from launch.supervision import MISTAKE

ONE_POOL = "alpha.jobset.sigs.k8s.io/exclusive-topology"
REPLICATED = {True: "slice", False: "nodes"}  # name of the Jobs, of TPUs and of GPUs
CONTAINER = "train"
PORT = 8476  # of JAX's coordinator
SAVING = 300  # seconds from SIGTERM to SIGKILL; nodes that are taken away give less
LONGEST_NAME = 63  # of a label; a pod's name is made of the JobSet's, the Job's and two numbers


@dataclasses.dataclass(frozen=True)
class Gpus:
    """Nodes with GPUs."""

    accelerator: str  # as the label cloud.google.com/gke-accelerator
    nodes: int
    gpus: int  # of each node


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of the cluster."""

    name: str
    image: str
    machines: Slice | Gpus
    slices: int = 1
    spot: bool = False
    namespace: str = "default"
    secret: str = ""  # a Secret in the namespace, whose keys become the environment
    service_account: str = ""
    restarts: int = 10

    @property
    def hosts(self) -> int:
        """Returns how many pods a Job has."""
        return self.machines.hosts if isinstance(self.machines, Slice) else self.machines.nodes

    def check(self) -> None:
        """Checks names against Kubernetes' rules, and slices against GKE's.

        Raises:
          UserError: a flag is ill-formed.
        """
        tpu = isinstance(self.machines, Slice)
        last = f"-{REPLICATED[tpu]}-{self.slices - 1}-{self.hosts - 1}-xxxxx"
        room = LONGEST_NAME - len(last)
        if not is_label(self.name) or len(self.name) > room or self.name[0].isdigit():
            raise UserError(
                f"--name={self.name!r} is no name; take at most {room} lower-case letters, digits "
                "and hyphens, a letter first and no hyphen last."
            )
        for flag in ("namespace", "secret", "service_account"):
            value = getattr(self, flag)
            parts = [value] if flag == "namespace" else value.split(".")
            if (value or flag == "namespace") and not (
                len(value) < 254 and all(map(is_label, parts))
            ):
                raise UserError(
                    f"--{flag}={value!r} is no name of Kubernetes; take lower-case letters, digits "
                    "and hyphens."
                )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,500}", self.image):
            raise UserError(
                f"--image={self.image!r} is no image; name one such as "
                "us-docker.pkg.dev/project/repository/manyheads:1."
            )
        if self.slices > 1 and not tpu:
            raise UserError(f"--slices={self.slices} is for TPUs; use --nodes for GPUs.")
        if self.slices > 1 and self.hosts == 1:
            raise UserError(
                f"--slices={self.slices} needs slices of several hosts; take a larger --topology, "
                "or --chips_per_host=4."
            )


def jobset(job: Job, request: Request) -> dict[str, object]:
    """Returns the manifest.

    Args:
      job: what is run, as ``elsewhere.moved`` returns it.
      request: what is asked of the cluster.

    Raises:
      UserError: a flag is ill-formed, or a value would be in clear.
    """
    request.check()
    if job.environment and not request.secret:
        names = ", ".join(sorted(job.environment))
        raise UserError(
            f"--env={names} would be in the manifest in clear; put it into a Secret (kubectl "
            "create secret generic NAME --from-env-file=FILE) and name that: --secret=NAME."
        )
    tpu = isinstance(request.machines, Slice)
    pods = dict(
        parallelism=request.hosts,
        completions=request.hosts,
        completionMode="Indexed",
        backoffLimit=0,  # one pod alone does not come back: all start together
        podFailurePolicy=dict(
            rules=[
                dict(
                    action="FailJob",
                    onExitCodes=dict(containerName=CONTAINER, operator="In", values=[MISTAKE]),
                )
            ]
        ),
        template=dict(spec=_pod(job, request)),
    )
    return dict(
        apiVersion="jobset.x-k8s.io/v1alpha2",
        kind="JobSet",
        metadata=dict(
            name=request.name,
            namespace=request.namespace,
            # Each slice in a node pool of its own: a pool is a slice.
            **(dict(annotations={ONE_POOL: "cloud.google.com/gke-nodepool"}) if tpu else {}),
        ),
        spec=dict(
            failurePolicy=dict(
                maxRestarts=request.restarts,
                rules=[
                    dict(
                        name="mistake",
                        action="FailJobSet",
                        onJobFailureReasons=["PodFailurePolicy"],
                    )
                ],
            ),
            # Pods have names before they are ready: they wait for each other.
            network=dict(
                enableDNSHostnames=True, subdomain=request.name, publishNotReadyAddresses=True
            ),
            replicatedJobs=[
                dict(name=REPLICATED[tpu], replicas=request.slices, template=dict(spec=pods))
            ],
        ),
    )


def _pod(job: Job, request: Request) -> dict[str, object]:
    machines = request.machines
    if isinstance(machines, Slice):
        selector = {
            "cloud.google.com/gke-tpu-accelerator": machines.accelerator,
            "cloud.google.com/gke-tpu-topology": machines.topology,
        }
        resource, count = "google.com/tpu", machines.chips
    else:
        selector = {"cloud.google.com/gke-accelerator": machines.accelerator}
        resource, count = "nvidia.com/gpu", machines.gpus
    container: dict[str, object] = dict(
        name=CONTAINER,
        image=request.image,
        command=["python", "-m", "train"],
        args=[*map(escaped, job.arguments()), *_place(request)],
        resources=dict(limits={resource: str(count)}),
    )
    if job.environment:
        container["env"] = [
            dict(name=name, valueFrom=dict(secretKeyRef=dict(name=request.secret, key=name)))
            for name in sorted(job.environment)
        ]
    elif request.secret:
        container["envFrom"] = [dict(secretRef=dict(name=request.secret))]
    pod: dict[str, object] = dict(
        restartPolicy="Never",
        terminationGracePeriodSeconds=SAVING,
        nodeSelector=selector,
        containers=[container],
    )
    if isinstance(machines, Slice) and request.slices > 1:
        # Between slices, as GKE's guide has it: without the detour of a pod's network.
        pod |= dict(hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet")
    if request.service_account:
        pod["serviceAccountName"] = request.service_account
    if request.spot:
        label = "cloud.google.com/gke-spot"
        selector[label] = "true"
        pod["tolerations"] = [dict(key=label, operator="Equal", value="true", effect="NoSchedule")]
    return pod


def _place(request: Request) -> Sequence[str]:
    """Returns the flags that tell a pod with GPUs of its place; Kubernetes puts in its index."""
    if isinstance(request.machines, Slice):
        return ()
    if request.hosts == 1:
        return ("--num_processes=1",)
    first = f"{request.name}-{REPLICATED[False]}-0-0.{request.name}"
    return (
        f"--coordinator={first}:{PORT}",
        f"--num_processes={request.hosts}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    )


def escaped(word: str) -> str:
    """Returns an argument in which Kubernetes puts in no variable: ``$$`` is its ``$``."""
    return word.replace("$", "$$")


def is_label(text: str) -> bool:
    """Tells whether a text is a DNS label of RFC 1123."""
    return bool(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text))
