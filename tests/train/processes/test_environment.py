"""Where a process stands: by flags, by SLURM, by a TPU slice; and what is left from other jobs."""

import http.server
import threading

import pytest

from configs.errors import UserError
from train.processes import environment
from train.processes.environment import PORT, Place, place

SRUN = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """An environment without a cluster."""
    for name in list(environment.os.environ):
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "JAX_COORDINATOR")):
            monkeypatch.delenv(name)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(environment, "_has_tpu", lambda: False)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_without_flags_and_cluster_a_process_is_alone():
    assert place("", None, None) is None
    assert place("", 1, None) is None


@pytest.mark.parametrize(
    ("coordinator", "address"),
    [
        ("10.0.0.1", f"10.0.0.1:{PORT}"),
        ("head:1234", "head:1234"),
        ("[fe80::1]:99", "[fe80::1]:99"),
        ("[::1]", f"[::1]:{PORT}"),
    ],
)
def test_flags_say_where_and_the_port_has_a_fixed_default(coordinator, address):
    assert place(coordinator, 3, 2) == Place(address, 3, 2)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("head", None, None), "go together"),
        (("", 2, 0), "go together"),
        (("", 1, 1), "go together"),
        (("head", 2, 2), "--process_id=2 must be at least 0 and below --num_processes=2"),
        (("http://head", 2, 0), "must be the host of process 0, or HOST:PORT"),
        (("head:70000", 2, 0), "must be the host of process 0, or HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        place(*given)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Four nodes with a task each: every task has all GPUs of its node.
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, Place(f"node007:{PORT}", 4, 2, None, "SLURM")),
        # Four tasks on each of two nodes: a GPU each.
        (
            {
                "SLURM_NTASKS": "8",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
                "SLURM_LOCALID": "2",
                "SLURM_STEP_NODELIST": "gpu1,gpu2",
            },
            Place(f"gpu1:{PORT}", 8, 2, [2], "SLURM"),
        ),
        # Each of which sees its own alone.
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "4",
                "SLURM_LOCALID": "2",
                "CUDA_VISIBLE_DEVICES": "0",
            },
            Place(f"node007:{PORT}", 4, 2, None, "SLURM"),
        ),
        ({"SLURM_STEP_NODELIST": "a[3,5-9],b1"}, Place(f"a3:{PORT}", 4, 2, None, "SLURM")),
        # A batch script that does not start its tasks by srun.
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_srun_says_where(monkeypatch, changes, expected):
    set_all(monkeypatch, SRUN | changes)
    assert place("", None, None) == expected


def test_flags_go_before_the_cluster(monkeypatch):
    set_all(monkeypatch, SRUN)
    assert place("", 1, None) is None
    assert place("head", 2, 1) == Place(f"head:{PORT}", 2, 1)


def test_a_slice_of_kubernetes_says_where(monkeypatch):
    set_all(monkeypatch, {"TPU_WORKER_HOSTNAMES": "t0,t1,t2,t3", "TPU_WORKER_ID": "3"})
    with pytest.raises(
        UserError, match="names 4 hosts of a TPU slice, and this machine has no TPU"
    ):
        place("", None, None)
    assert place("", 1, None) is None
    monkeypatch.setattr(environment, "_has_tpu", lambda: True)
    assert place("", None, None) == Place(f"t0:{PORT}", 4, 3, None, "the TPU slice")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert place("", None, None) is None


def test_several_slices_are_numbered_through(monkeypatch):
    slices = {
        "TPU_WORKER_HOSTNAMES": "t0,t1",
        "TPU_WORKER_ID": "1",
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "first:8080",
    }
    monkeypatch.setattr(environment, "_has_tpu", lambda: True)
    set_all(monkeypatch, slices)
    assert place("", None, None) == Place(f"first:{PORT}", 6, 5, None, "the TPU slice")
    monkeypatch.delenv("MEGASCALE_SLICE_ID")
    with pytest.raises(UserError, match="MEGASCALE_SLICE_ID is not set"):
        place("", None, None)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "2"}, "worker 2 of 2 in slice 0 of 1"),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "one"}, "TPU_WORKER_ID=one is no"),
        ({"MEGASCALE_NUM_SLICES": "two"}, "MEGASCALE_NUM_SLICES=two is no number"),
        (SRUN | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS=x is no number"),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "-1"}, "SLURM_STEP_NUM_TASKS=-1 is no number"),
        (SRUN | {"SLURM_PROCID": ""}, "SLURM_PROCID= is no number"),
        (SRUN | {"SLURM_LOCALID": "x", "SLURM_STEP_TASKS_PER_NODE": "4"}, "SLURM_LOCALID=x is"),
        (SRUN | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST= names no host"),
    ],
)
def test_variables_that_cannot_be_are_named(monkeypatch, variables, sentence):
    monkeypatch.setattr(environment, "_has_tpu", lambda: "TPU_WORKER_ID" in variables)
    set_all(monkeypatch, variables)
    with pytest.raises(UserError, match=sentence):
        place("", None, None)


@pytest.fixture
def metadata(monkeypatch):
    """The answers of a TPU VM's metadata, by attribute; a number is a status."""
    answers = {}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            answer = answers.get(self.path.rsplit("/", 1)[1], 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(str(answer).encode())

        def log_message(self, *_):
            pass

    monkeypatch.setattr(environment, "_has_tpu", lambda: True)
    monkeypatch.setattr(environment, "RETRY", 0.01)
    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"localhost:{server.server_port}")
        yield answers
        server.shutdown()


@pytest.mark.parametrize(
    ("endpoints", "first"), [("t0,t1", "t0"), ("w:0:10.0.0.8,w:1:10.0.0.9", "10.0.0.8")]
)
def test_a_tpu_vm_asks_its_metadata(metadata, endpoints, first):
    metadata |= {"worker-network-endpoints": endpoints, "agent-worker-number": "1"}
    assert place("", None, None) == Place(f"{first}:{PORT}", 2, 1, None, "the TPU slice")
    metadata["worker-network-endpoints"] = "t0"
    assert place("", None, None) is None


def test_a_tpu_vm_that_cannot_tell_does_not_train_alone(metadata):
    assert place("", None, None) is None  # it has no such attribute
    metadata["worker-network-endpoints"] = "t0,t1"
    with pytest.raises(UserError, match="one of 2 of a TPU slice, and its metadata do not say"):
        place("", None, None)
    metadata["worker-network-endpoints"] = 503
    with pytest.raises(UserError, match="does not say whether this is one of several hosts"):
        place("", None, None)
    assert place("", 1, None) is None


@pytest.mark.parametrize(
    ("variables", "given", "stale"),
    [
        ({"MEGASCALE_COORDINATOR_ADDRESS": "gone:8080"}, ("", None, None), "MEGASCALE_COORD"),
        ({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_PORT": "1"}, ("head", 2, 0), "MEGASCALE_NUM"),
        ({"JAX_COORDINATOR_ADDRESS": "gone:1"}, ("", None, None), "JAX_COORDINATOR_ADDRESS"),
        ({"JAX_COORDINATOR_ADDRESS": "gone:1"}, ("head", 2, 0), "JAX_COORDINATOR_ADDRESS"),
        (SRUN | {"MEGASCALE_SLICE_ID": "0"}, ("", None, None), "MEGASCALE_SLICE_ID"),
    ],
)
def test_what_another_job_left_is_named(monkeypatch, variables, given, stale):
    set_all(monkeypatch, variables)
    with pytest.raises(UserError, match=f"{stale}.*may be left from another job; run: unset "):
        place(*given)
