"""What is wrong, by what hosts say: each case named with its host and remedy, and nothing else."""

import pytest

from launch.examination import findings
from launch.examination.findings import Expected

REVISION = "a" * 40


def fact(**more):
    """Returns what a host says with which nothing is wrong."""
    packages = dict(
        packages=dict(jax="0.10.2", flax="0.12.8", libtpu=None),
        config=dict(digest="abc"),
        devices=dict(count=4, kind="TPU v5 lite", platform="tpu"),
    )
    return (
        dict(
            host="h",
            address=dict(address="10.0.0.1"),
            job=dict(state=None),
            code=dict(folder="/c", there=True, differing=[], revision=REVISION),
            packages=None
            if more.get("packages", 0) is None
            else packages | more.pop("packages", {}),
            disk=dict(folder="/w", free=1e12, total=2e12),
            kept=dict(folder="/home/me/manyheads", free=1e12, total=2e12),
            busy=[],
            variables={},
            skew=0.1,
            uncertain=0.05,
        )
        | more
    )


def found(expected=None, **facts):
    """Returns what is found where hosts a, b and c differ so from one that is well."""
    known = {name: fact(**facts.get(name, {})) for name in "abc"}
    return findings.findings(known, expected or Expected(REVISION))


def test_nothing_is_found_where_nothing_is_wrong():
    assert found() == []
    on_cpu = dict(packages=dict(devices=dict(count=1, kind="cpu", platform="cpu")))
    assert found(a=on_cpu, b=on_cpu, c=on_cpu) == []


def test_what_could_not_be_seen_yet_is_a_note():
    (finding,) = found(a=dict(code=dict(folder="/c", there=False), packages=None))
    assert not finding.fatal
    assert finding.sentence == (
        "a has no code yet, so its config, packages and devices were not seen; launch.ssh sends "
        "it, and looks again."
    )


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("Host key verification failed", "log in there once by hand, and accept its key"),
        ("root@b: Permission denied (publickey)", "have ssh log in there by a key, without"),
        ("exec: python3: not found", "install python3 there"),
        ("No route to host", "see that it runs, and that ssh logs in there without a password"),
    ],
)
def test_who_cannot_be_reached_has_the_remedy_of_the_reason(reason, remedy):
    finding = findings.unreachable("b", reason)
    assert finding.sentence.startswith(f"b cannot be reached ({reason}); {remedy}")
    assert finding.passing


def sized(count):
    return dict(config=dict(digest="abc", bytes=count))


CPU = dict(devices=dict(count=4, kind="TPU v5 lite", platform="cpu"))
CASES = [
    (
        dict(code=dict(folder="/c", there=True, differing=["model/a.py"], revision=REVISION)),
        "b has other code (model/a.py differs there); delete /c there, and launch again.",
    ),
    (
        dict(code=dict(folder="/c", there=True, differing=["x", "y", "z"], revision=None)),
        f"b has other code (revision unknown, not {REVISION}; x and 2 more differ there); delete "
        "/c there, and launch again.",
    ),
    (
        dict(packages=dict(config=dict(digest="def"))),
        "the config of b: def, where others have abc; see that all read the same files.",
    ),
    (
        dict(packages=dict(packages=dict(jax="0.9", flax="0.12.8", libtpu=None))),
        "jax of b: 0.9, where others have 0.10.2; install requirements.lock there.",
    ),
    (
        dict(packages=dict(devices=dict(count=3, kind="TPU v5 lite", platform="tpu"))),
        "devices of b: 3 x TPU v5 lite, where others have 4 x TPU v5 lite; see that all devices "
        "of it are there.",
    ),
    (
        dict(packages=dict(devices=dict(error="no TPU"))),
        "devices of b: no TPU; see that its driver is installed and no other process has them.",
    ),
    (
        dict(packages=dict(error="no answer in 30 s", slow=True)),
        "the environment on b does not tell what it has (no answer in 30 s, perhaps as another "
        "process has the devices); try it there by hand.",
    ),
    (
        dict(disk=dict(folder="/w", free=0, error="No space left on device")),
        "/w on b cannot be written (No space left on device); free space there, make it writable, "
        "or name another --workdir.",
    ),
    (
        dict(kept=dict(folder="/home/me", error="Read-only file system")),
        "/home/me on b cannot be written (Read-only file system); free space there, make it "
        "writable, or name another --root.",
    ),
    (
        dict(variables=dict(MEGASCALE_NUM_SLICES="2", XLA_FLAGS="--x", TPU_VISIBLE_DEVICES="0")),
        "b sets MEGASCALE_NUM_SLICES=2, left from another job; take that out of its shell's "
        "start-up files or /etc/environment.",
    ),
    (
        dict(address=dict(error="Name or service not known"), packages=CPU),
        "b does not know its own name h (Name or service not known), by which CPUs find each "
        "other; add it with its address to /etc/hosts there.",
    ),
]


@pytest.mark.parametrize(("differs", "sentence"), CASES)
def test_what_is_wrong_on_one_host_is_named_with_it(differs, sentence):
    others = dict(packages=CPU) if "address" in differs else {}
    (finding,) = found(a=others, b=differs, c=others)
    assert (finding.host, finding.sentence, finding.fatal) == ("b", sentence, True)
    assert finding.passing == ("slow" in differs.get("packages", {}))


@pytest.mark.parametrize(
    ("differs", "sentence"),
    [
        (
            dict(busy=[dict(pid=7, devices=["/dev/accel0", "/dev/accel1"], command="python x")]),
            "/dev/accel0, /dev/accel1 of c is in use by process 7 (python x); end it there: "
            "kill 7.",
        ),
        (
            dict(skew=-300.0),
            "the clock of c is 300 s behind this machine's; start a time service there, such as "
            "chrony.",
        ),
        (
            dict(disk=dict(folder="/w", free=3e9), packages=sized(2.5e9)),
            "/w on c has 3.0 GB left, and a saved step takes about 2.5 GB; free space there, or "
            "name another --workdir.",
        ),
        (
            dict(address=dict(address="127.0.1.1"), packages=dict(devices=None)),
            "c takes its own name h for 127.0.1.1, where other hosts do not find it if they run "
            "on CPUs; give its true address in /etc/hosts there.",
        ),
    ],
)
def test_what_may_do_no_harm_is_a_note(differs, sentence):
    (finding,) = found(c=differs)
    assert (finding.sentence, finding.fatal) == (sentence, False)


def test_a_saved_step_that_does_not_fit_is_no_note():
    (finding,) = found(c=dict(disk=dict(folder="/w", free=3e9), packages=sized(4e9)))
    assert finding.fatal


def test_an_uncertain_clock_is_not_accused():
    assert found(c=dict(skew=8.0, uncertain=4.0)) == []


def test_a_checkout_is_to_have_the_revision():
    other = dict(code=dict(folder="/c", there=True, differing=[], revision="b" * 40))
    (finding,) = found(Expected(REVISION, own_code=False), b=other)
    assert finding.sentence == (
        f"b has other code (revision {'b' * 40}, not {REVISION}); check out {REVISION} there, "
        "unchanged."
    )
    missing = dict(code=dict(folder="/c", there=False), packages=None)
    (finding,) = found(Expected(REVISION, own_code=False), b=missing)
    assert finding.sentence == "b has no /c; clone the code there."


def test_the_coordinators_port():
    where = ("a", "10.0.0.1", 8476)

    def wrong(listening, reached):
        host, address, number = where
        return [f.sentence for f in findings.port(host, listening, reached, address, number)]

    assert wrong({}, dict(b={}, c={})) == []
    assert wrong({}, dict(b={}, c=dict(error="it does not answer"))) == [
        "c cannot reach the coordinator, port 8476 of a (10.0.0.1: it does not answer); open that "
        "port to it in the firewall, or name another by --coordinator_port, or another address of "
        "it by --coordinator."
    ]
    assert wrong(dict(taken="process 5 (python -m train)"), {}) == [
        "port 8476 of a, the coordinator's, is taken by process 5 (python -m train); end that, or "
        "give another --coordinator_port."
    ]
    assert wrong(dict(error="Permission denied"), {}) == [
        "a cannot listen at port 8476 (Permission denied); give another --coordinator_port."
    ]
    assert findings.unreachable("b", "No route to host").passing
