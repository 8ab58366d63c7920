"""What is there under a name already: in words, and whether it can be taken over."""

from collections.abc import Callable

from launch.tpu_vm import replies
from launch.tpu_vm.client import Here
from launch.tpu_vm.gcloud import Request
from launch.tpu_vm.place import Place
from launch.tpu_vm.reconciler import HEALTHY
from launch.tpu_vm.replies import Node, Queued


def refused(
    here: Here,
    request: Request,
    place: Place,
    owns: Callable[[Queued | Node], bool],
    take_over: bool = False,
) -> str:
    """Returns why what is there cannot be taken over; "" where it can, or nothing is there.

    Args:
      here: what is there.
      request: what is wished.
      place: under which name.
      owns: tells what was asked for, or adopted, by this run.
      take_over: whether that of another run of this command may be.
    """
    choose = "choose another --name, or delete it first"
    wanted = request.accelerator.name
    for found in (here.queued, *here.nodes.values()):
        if found is not None and not replies.fits(found, request):
            return f"{found.name} is there already, as {found.accelerator}, not {wanted}; {choose}"
    count = here.queued.nodes if here.queued else request.slices
    if count != request.slices:
        return (
            f"{place.name} is there already, with --slices={count} and not {request.slices}; "
            f"{choose}"
        )
    queued = here.queued
    if queued is not None and not owns(queued) and queued.node_id not in ("", place.name):
        return f"{place.name} is there already, and its TPU VM is called {queued.node_id}; {choose}"
    for each in here.all():
        if replies.token(each) and not owns(each) and not take_over:
            return (
                f"{each.name} is there already, asked for by another run of launch.tpu_vm, maybe "
                "on another machine; end that, or give --take_over"
            )
    for node in here.nodes.values():
        if owns(node):
            continue
        if node.queued and node.queued != place.name:
            return f"{node.name} is there already, of the queued resource {node.queued}; {choose}"
        if request.slices > 1 and here.queued is None:
            return f"{node.name} is there already, without a queued resource; {choose}"
    return ""


def states(here: Here) -> str:
    """Returns the states of what is there, as half a sentence."""
    if here.queued is None and not here.nodes:
        return "is not there"
    nodes = [
        f"{node.name} {node.state}" + (f" ({node.health})" if node.health not in HEALTHY else "")
        for node in here.nodes.values()
    ]
    return ", ".join([*([here.queued.state] if here.queued else []), *nodes])
