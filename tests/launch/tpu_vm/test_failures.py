"""Complaints of gcloud as users quote them, and what they are."""

import pytest

from launch.tpu_vm.failures import Kind, of_code, of_reply
from launch.tpu_vm.gcloud import Reply
from tests.launch.tpu_vm import texts

CREATE = "(gcloud.compute.tpus.queued-resources.create)"
NARRATED = (
    "Create request issued for: [heads]\nWaiting for operation [projects/my-project/locations/"
    "us-west4-a/operations/operation-1] to complete...failed.\n"
)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (texts.REFUSALS["quota"], Kind.QUOTA),
        ("Quota 'TPUV5PPerProjectPerZoneForTPUAPI' exhausted. Limit 8 in zone a", Kind.QUOTA),
        (texts.REFUSALS["stockout"], Kind.STOCKOUT),
        ("RESOURCE_EXHAUSTED: no room", Kind.STOCKOUT),
        ('{"code": 8, "message": "Insufficient reserved capacity. Contact"}', Kind.STOCKOUT),
        (texts.not_found("queued", "us-west4-a/heads"), Kind.NOT_FOUND),
        ("ALREADY_EXISTS: Resource 'heads' already exists", Kind.EXISTS),
        (texts.REFUSALS["denied"], Kind.DENIED),
        (texts.REFUSALS["logged_out"], Kind.DENIED),
        ("You do not currently have an active account selected.\nPlease run:", Kind.DENIED),
        ("PERMISSION_DENIED: Cloud TPU API has not been used in project 1 before", Kind.DENIED),
        # Its sentence says "was not found", and the API's word is another.
        (texts.REFUSALS["bad"], Kind.MISTAKE),
        ('{"code": 3, "message": "FLEX_START provisioning model is not supported"}', Kind.MISTAKE),
        ("FAILED_PRECONDITION: 'heads' is being deleted", Kind.BUSY),
        ("ABORTED: another operation is under way", Kind.BUSY),
        *((text, Kind.TRANSIENT) for text in texts.TROUBLE),
        ("HTTPError 502: Bad Gateway", Kind.TRANSIENT),
        ("DEADLINE_EXCEEDED", Kind.TRANSIENT),
        ("Something new", Kind.UNKNOWN),
        ("", Kind.UNKNOWN),
    ],
)
def test_kinds(said, kind):
    failure = of_reply(Reply(1, "", f"{NARRATED}ERROR: {CREATE} {said}\n"))
    assert failure is not None
    assert failure.kind is kind
    assert "\n" not in failure.sentence
    assert CREATE not in failure.sentence
    assert failure.sentence.endswith(".")


def test_what_can_help():
    again = {kind: of_reply(Reply(1, "", f"ERROR: {CREATE} {kind.name}")) for kind in Kind}
    assert again[Kind.UNKNOWN] is not None
    for said, helps, unsure in (
        (texts.REFUSALS["quota"], True, False),
        (texts.REFUSALS["stockout"], True, False),
        (texts.REFUSALS["denied"], False, False),
        (texts.REFUSALS["bad"], False, False),
        (texts.TROUBLE[0], True, True),
        ("Something new", True, True),
    ):
        failure = of_reply(Reply(1, "", f"ERROR: {CREATE} {said}"))
        assert failure is not None
        assert (failure.again, failure.unsure) == (helps, unsure)


def test_no_answer_and_no_failure():
    assert of_reply(Reply(0, "{}", "WARNING: old")) is None
    late = of_reply(Reply(None))
    assert late is not None
    assert (late.kind, late.unsure) == (Kind.TIMEOUT, True)


def test_flags_that_gcloud_does_not_know_are_a_mistake():
    failure = of_reply(Reply(2, "", f"ERROR: {CREATE} unrecognized arguments: --bogus \n\nTo"))
    assert failure is not None
    assert (failure.kind, failure.said) == (Kind.MISTAKE, "unrecognized arguments: --bogus")


def test_a_long_sentence_is_cut():
    failure = of_reply(Reply(1, "", f"ERROR: {CREATE} " + "x" * 5000))
    assert failure is not None
    assert len(failure.said) < 400


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (13, "an internal error has occurred", Kind.TRANSIENT),
        (8, "There is no more capacity in the zone", Kind.STOCKOUT),
        (8, "Quota 'TPUV4' exhausted. Limit 8", Kind.QUOTA),
        (3, "bad topology", Kind.MISTAKE),
        (7, "no access", Kind.DENIED),
        (0, "", Kind.UNKNOWN),
    ],
)
def test_why_a_queued_resource_failed(code, message, kind):
    assert of_code(code, message).kind is kind
