"""What is read of answers, against the examples of the documentation."""

import datetime
import json
import math

import pytest

from launch.tpu_vm import replies
from launch.tpu_vm.accelerators import accelerator
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.replies import Unreadable

# The example of an ACTIVE queued resource of the guide "Manage queued resources", as JSON.
ACTIVE = {
    "name": "projects/my-project/locations/us-west4-a/queuedResources/my-queue",
    "createTime": "2026-05-04T03:02:01.123456789Z",
    "state": {"state": "ACTIVE"},
    "tpu": {
        "nodeSpec": [
            {
                "node": {
                    "acceleratorType": "v5litepod-8",
                    "bootDisk": {},
                    "networkConfig": {"enableExternalIps": True},
                    "queuedResource": "projects/1/locations/us-west4-a/queuedResources/my-queue",
                    "runtimeVersion": "v2-alpha-tpuv5-lite",
                    "schedulingConfig": {},
                    "labels": {"launched-by": "manyheads", "manyheads-run": "ab12"},
                    "serviceAccount": {},
                    "shieldedInstanceConfig": {},
                    "useTpuVm": True,
                },
                "nodeId": "my-node",
                "parent": "projects/1/locations/us-west4-a",
            }
        ]
    },
}


def test_a_queued_resource():
    found = replies.queued(json.dumps(ACTIVE))
    assert (found.name, found.zone, found.state) == ("my-queue", "us-west4-a", "ACTIVE")
    assert (found.accelerator, found.nodes, found.spot) == ("v5litepod-8", 1, False)
    assert replies.token(found) == "ab12"
    at = datetime.datetime(2026, 5, 4, 3, 2, 1, 123457, datetime.UTC).timestamp()
    assert replies.seconds(found.created) == pytest.approx(at, abs=1e-5)
    assert replies.all_queued(json.dumps([ACTIVE, ACTIVE])) == [found, found]
    assert replies.all_queued("") == []


def test_a_failed_one_of_several_slices():
    spec = dict(
        node=dict(acceleratorConfig=dict(type="V4", topology="2x2x4"), labels={}),
        multisliceParams=dict(nodeCount=3, nodeIdPrefix="heads"),
    )
    error = dict(code=8, message="There is no more capacity in the zone")
    text = json.dumps(
        dict(
            ACTIVE,
            spot={},
            state=dict(state="FAILED", failedData=dict(error=error)),
            tpu=dict(nodeSpec=[spec]),
        )
    )
    found = replies.queued(text)
    assert (found.accelerator, found.nodes, found.spot) == ("v4:2x2x4", 3, True)
    assert (found.code, found.reason) == (8, error["message"])
    assert replies.token(found) == ""
    assert replies.fits(found, Request(accelerator("v4-8", "2x2x4")))
    assert not replies.fits(found, Request(accelerator("v4-8", "2x2x2")))


def test_a_node():
    text = json.dumps(
        dict(
            name="projects/my-project/locations/us-west4-a/nodes/heads-1",
            acceleratorType="v5litepod-16",
            state="READY",
            health="UNHEALTHY_MAINTENANCE",
            createTime="2026-05-04T03:02:01+02:00",
            networkEndpoints=[dict(ipAddress="10.0.0.2", port=8470), dict(ipAddress="10.0.0.3")],
            queuedResource="projects/1/locations/us-west4-a/queuedResources/heads",
        )
    )
    found = replies.node(text)
    assert (found.name, found.state, found.health) == ("heads-1", "READY", "UNHEALTHY_MAINTENANCE")
    assert (found.queued, found.addresses) == ("heads", ("10.0.0.2", "10.0.0.3"))
    assert (
        replies.seconds(found.created)
        == datetime.datetime(2026, 5, 4, 1, 2, 1, tzinfo=datetime.UTC).timestamp()
    )
    assert replies.fits(found, Request(accelerator("v5litepod-16")))
    assert not replies.fits(found, Request(accelerator("v5litepod-8")))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"name": 3, "state": {}}', "Traceback"])
def test_what_is_no_answer(text):
    with pytest.raises(Unreadable):
        replies.queued(text)
    with pytest.raises(Unreadable):
        replies.all_nodes("[1]")


def test_no_time():
    assert math.isnan(replies.seconds("yesterday"))
