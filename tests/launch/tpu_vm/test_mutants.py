"""Watches that are made wrong, each in one way, which the random sequences have to find."""

import pytest

from launch.tpu_vm import gcloud, reconciler, watch
from launch.tpu_vm.client import Client, Here
from launch.tpu_vm.place import Place
from launch.tpu_vm.reconciler import Limits, Wait
from launch.tpu_vm.record import Record
from tests.launch.tpu_vm import sequences, world
from tests.launch.tpu_vm.texts import PROJECT
from tests.launch.tpu_vm.world import ZONE, Endless

SEQUENCES = 600


def wrong(seed: int) -> list[str]:
    try:
        return sequences.wrong(sequences.world(seed))
    except Endless as error:
        return [str(error)]


def no_delete(patch):
    patch.setattr(Client, "delete", lambda self: None)


def no_delete_of_nodes(patch):
    patch.setattr(Client, "delete_node", lambda self, node: None)


def delete_by_prefix(patch):
    delete = Client.delete

    def every(self):
        for other in ("heads-2x", "headsman", "head"):
            self._run(gcloud.delete(Place(other, ZONE, PROJECT)), 60)
        return delete(self)

    patch.setattr(Client, "delete", every)


def no_record_before_create(patch):
    write = world.Memory.write

    def late(self, record):
        if not (record.unsure and self._world.time - record.asked < 1):
            write(self, record)

    patch.setattr(world.Memory, "write", late)


def gone_is_believed_at_once(patch):
    patch.setattr(reconciler, "SETTLES", 0.0)
    patch.setattr(reconciler, "SETTLES_UNSURE", 0.0)


def dead_ones_are_waited_for(patch):
    delete = reconciler._delete
    dead = lambda past, seen, why: Wait(60) if why.startswith("is ") else delete(past, seen, why)  # noqa: E731
    patch.setattr(reconciler, "_delete", dead)


def no_end_of_attempts(patch):
    create = reconciler._create
    patch.setattr(reconciler, "_create", lambda limits, past, seen: create(Limits(), past, seen))


def hours_are_not_counted(patch):
    patch.setattr(reconciler, "holds", lambda cloud: False)


def nodes_are_not_looked_at(patch):
    look = Client.look

    def blind(self, slices):
        here = look(self, slices)
        return Here(here.queued, {}) if isinstance(here, Here) and not here.queued else here

    patch.setattr(Client, "look", blind)


def all_is_ours(patch):
    patch.setattr(Record, "owns", lambda self, found: True)


def a_lost_answer_is_a_refusal(patch):
    create = Client.create

    def sure(self, request, run):
        failure = create(self, request, run)
        if failure is not None and failure.unsure:
            patch.setattr(type(failure), "unsure", False)
        return failure

    patch.setattr(Client, "create", sure)


def going_is_gone(patch):
    stage = reconciler.stage

    def hasty(seen, past):
        found = stage(seen, past)
        return reconciler.Stage.ABSENT if found is reconciler.Stage.GOING else found

    patch.setattr(reconciler, "stage", hasty)


def deletes_are_tried_once(patch):
    clear = reconciler.clear
    tried = set()

    def once(past, seen):
        action = clear(past, seen)
        if isinstance(action, reconciler.Delete):
            if id(seen.nodes) in tried:
                return Wait(60)
            tried.add(id(seen.nodes))
        return action

    patch.setattr(reconciler, "clear", once)


def an_exception_goes_through(patch):
    run = watch.Watch.run

    def bare(self):
        cleared, self._clear = self._clear, lambda: ""
        live = self._live

        def lives():
            end = live()
            self._clear = cleared
            return end

        self._live = lives
        return run(self)

    patch.setattr(watch.Watch, "run", bare)


MUTANTS = [
    no_delete,
    no_delete_of_nodes,
    delete_by_prefix,
    no_record_before_create,
    gone_is_believed_at_once,
    dead_ones_are_waited_for,
    no_end_of_attempts,
    hours_are_not_counted,
    nodes_are_not_looked_at,
    all_is_ours,
    a_lost_answer_is_a_refusal,
    going_is_gone,
    deletes_are_tried_once,
    an_exception_goes_through,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_sequences_find_a_watch_that_is_wrong(mutant, monkeypatch):
    mutant(monkeypatch)
    monkeypatch.setattr(world, "MOST", 3000)
    assert any(wrong(seed) for seed in range(SEQUENCES))
