"""What a launch has decided: which processes are whose, and what a record says."""

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from launch.hosts.host import Host
from launch.hosts.plan import Plan, job_name, on_hosts
from launch.hosts.snapshot import Snapshot
from launch.job import Job, Resources

CODE = Snapshot(Path("/code"), "0123", (), "abcd", "")


def planned(hosts=3, processes=2, **more):
    job = Job("a.py", "/w", ("--config.seed=1",), dict(TOKEN="secret"), Resources(hosts, processes))
    reached = tuple(Host(f"h{i}", f"10.0.0.{i}", ("ssh",)) for i in range(hosts))
    return Plan(job, "one", reached, CODE, coordinator="10.0.0.0:8476", **more)


def test_every_process_of_the_run_is_of_one_host():
    plan = planned()
    shares = [plan.share(index) for index in range(3)]
    indices = [s["first"] + i for s in shares for i in range(s["count"])]
    assert indices == list(range(6))
    assert {(s["total"], s["coordinator"]) for s in shares} == {(6, "10.0.0.0:8476")}


def test_values_of_the_environment_are_in_the_agents_request_alone():
    plan = planned()
    request = plan.start_request(1, "4", "3", dict(code="/there", python="/p"))
    agent = request.pop("agent")
    assert agent["environment"] == dict(TOKEN="secret")
    assert agent["arguments"] == ["--config=a.py", "--config.seed=1", "--workdir=/w"]
    for shown in (json.dumps(request), json.dumps(plan.about()), repr(plan)):
        assert "secret" not in shown
    assert request["job"]["environment"] == ["TOKEN"]


def test_a_record_tells_the_same_job_from_another():
    recorded = json.loads(json.dumps(planned().about()))
    assert planned().same(recorded) == []
    assert planned(hosts=2).same(recorded) == ["hosts", "resources"]
    assert planned().same({}) == sorted(planned().about())


def test_names_of_jobs():
    assert job_name("a.b-C_1", "/x") == "a.b-C_1"
    first, second = job_name("", "/runs/a b;c"), job_name("", "/other/a b;c")
    assert first != second
    assert first.startswith("a-b-c-")
    assert job_name("", "gs://bucket/run").startswith("run-")
    for name in ("-a", "a/b", "a b", "..", "a" * 64, "a\n"):
        with pytest.raises(UserError, match="is no name of a job"):
            job_name(name, "/x")


def test_a_relative_workdir_lies_below_the_root_of_the_hosts():
    assert on_hosts("runs/a b", "~/m") == "~/m/runs/a b"
    for path in ("/a", "~/a", "gs://b/c", ""):
        assert on_hosts(path, "~/m") == path
