"""A run as a JobSet on Google Kubernetes Engine (the extra ``gke``).

    python -m launch.gke --accelerator=tpu-v5-lite-podslice --topology=4x4 --slices=2 --name=heads
      --image=us-docker.pkg.dev/project/repository/manyheads:1
      --config=configs/gpt3.py:125m --workdir=gs://bucket/125m

hands a manifest to ``kubectl apply``, in a cluster that has JobSet installed
(https://jobset.sigs.k8s.io/docs/installation/) and node pools of that accelerator and topology.
``--accelerator=nvidia-h100-80gb --nodes=4 --gpus_per_node=8`` is for GPUs. The image has this code
in its working directory, installed with the extra ``tpu`` or ``cuda`` (and ``gs``).

Values of the environment come from a Secret of the cluster: ``--secret=NAME`` gives the run all of
its keys, with ``--env=KEY`` only those (``--env=KEY=`` where it is not set here). When a pod fails,
or its node is taken away, all are started again, ``--restarts`` times at most, and go on from what
was saved; a user's mistake is not repeated.
``--out=FILE.yaml`` only writes the manifest, ``--dry_run`` shows it.
"""

from configs import keyboard

if __name__ == "__main__":
    keyboard.end_at_once()  # the imports below take seconds

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from absl import flags

from configs import command
from configs.errors import UserError
from launch import elsewhere, job
from launch.gke import manifest, schema, slices


def _define_flags() -> None:
    job.define_flags()
    flags.DEFINE_string("accelerator", "", "Such as tpu-v5-lite-podslice or nvidia-h100-80gb.")
    flags.DEFINE_string("topology", "", "Chips of a TPU's slice along each axis, such as 4x4.")
    flags.DEFINE_integer("slices", 1, "How many slices of TPUs.", 1)
    flags.DEFINE_integer("chips_per_host", 0, "TPU chips of a host, where there is a choice.", 0)
    flags.DEFINE_integer("nodes", 1, "How many nodes with GPUs.", 1)
    flags.DEFINE_integer("gpus_per_node", 0, "GPUs of each node.", 0)
    flags.DEFINE_bool("spot", False, "Nodes that are cheaper, and may be taken away.")
    flags.DEFINE_string("image", "", "The container image that has this code.")
    flags.DEFINE_string("name", "", "The JobSet's name.")
    flags.DEFINE_string("namespace", "default", "Where it is made.")
    flags.DEFINE_string("secret", "", "A Secret, whose keys are variables of the run.")
    flags.DEFINE_string("service_account", "", "As whom the run reads and writes its workdir.")
    flags.DEFINE_integer("restarts", 10, "How many times all are started again.", 0)
    flags.DEFINE_string("out", "", "Write the manifest into this file, and start nothing.")


def main() -> None:
    """Makes a JobSet, or shows or writes its manifest.

    Raises:
      UserError: a flag is ill-formed, or kubectl is missing or fails.
    """
    given = flags.FLAGS
    for name in ("accelerator", "image", "name"):
        if not given[name].value:
            raise UserError(f"--{name} is missing; see --help for an example.")
    request = manifest.Request(
        name=given.name,
        image=given.image,
        machines=_machines(),
        slices=given.slices,
        spot=given.spot,
        namespace=given.namespace,
        secret=given.secret,
        service_account=given.service_account,
        restarts=given.restarts,
    )
    resources = job.Resources(
        request.hosts * request.slices, 1, accelerator=given.accelerator, spot=given.spot
    )
    made = manifest.jobset(elsewhere.moved(job.of_flags(resources)), request)
    schema.check(made)
    text = yaml.safe_dump(made, sort_keys=False, width=100)
    place = f"--namespace={given.namespace}"
    if given.out and not given.dry_run:
        try:
            Path(given.out).write_text(text)
        except OSError as error:
            raise UserError(
                f"--out={given.out} cannot be written ({error.strerror}); name another."
            ) from error
        print(f"start it by: {shlex.join(['kubectl', 'apply', f'--filename={given.out}'])}")
        return
    line = ["kubectl", "apply", place, "--filename=-"]
    if given.dry_run:
        print(text)
        print(f"given to: {shlex.join(line)}")
        return
    if shutil.which("kubectl") is None:
        raise UserError("kubectl is not found; install it, or see the manifest with --dry_run.")
    if subprocess.run(line, input=text, text=True, check=False).returncode:
        raise UserError("kubectl did not take the manifest; its own message is above.")
    print(f"  see     kubectl get jobset {given.name} {place}")
    chosen = f"--selector=jobset.sigs.k8s.io/jobset-name={given.name}"
    print(f"  watch   kubectl logs {place} {chosen} --prefix --follow --max-log-requests=100")
    print(f"  cancel  kubectl delete jobset {given.name} {place}")
    sys.stdout.flush()


def _machines() -> slices.Slice | manifest.Gpus:
    given = flags.FLAGS
    gpu = given.accelerator.startswith("nvidia-")
    for name in ("topology", "chips_per_host") if gpu else ("nodes", "gpus_per_node"):
        if given[name].present:
            machines = "TPUs" if gpu else "GPUs"
            raise UserError(f"--{name} is for {machines}, not {given.accelerator}; leave it out.")
    if not gpu:
        return slices.tpu_slice(given.accelerator, given.topology, given.chips_per_host)
    if not manifest.is_label(given.accelerator):
        raise UserError(f"--accelerator={given.accelerator!r} is no GPU; see kubectl get nodes.")
    if not given.gpus_per_node:
        raise UserError("--gpus_per_node is missing; say how many a node has, such as 8.")
    return manifest.Gpus(given.accelerator, given.nodes, given.gpus_per_node)


if __name__ == "__main__":
    command.run(main, _define_flags)
