"""Names that Google Cloud takes, and what becomes of others."""

import pytest

from configs.errors import UserError
from launch.tpu_vm.place import Place, place

ODD = ["a b", "a;ls", "$(ls)", "`ls`", "a\nb", "a'b", 'a"b', "--flag", "ä", "a/b", "a\0b", "a=b,c"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("Heads", "us-west4-a"), "--name=Heads is no Google Cloud name"),
        (("heads-", "us-west4-a"), "--name=heads- is no"),
        (("a" * 64, "us-west4-a"), "at most 63"),
        (("", "us-west4-a"), "--name is missing"),
        (("heads", "us-west4"), "--zone=us-west4 is no zone"),
        (("heads", ""), "--zone is missing"),
        (("heads", "us-west4-a", "--evil"), "--project=--evil is no project id"),
    ],
)
def test_mistakes(arguments, said):
    with pytest.raises(UserError, match=said):
        place(*arguments)


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_are_refused_in_one_line(odd):
    for arguments in ((odd, "us-west4-a"), ("heads", odd), ("heads", "us-west4-a", odd)):
        with pytest.raises(UserError) as error:
            place(*arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("project", ["my-project-2", "example.com:my-project", "123456789012"])
def test_projects(project):
    assert place("heads", "us-west4-a", project).words() == [
        "--zone=us-west4-a",
        f"--project={project}",
    ]


def test_nodes_of_several_slices_are_numbered():
    # The reference of MultisliceParams: with the prefix np and three nodes, np-0, np-1 and np-2.
    assert Place("np", "us-west4-a").nodes(3) == ["np-0", "np-1", "np-2"]
    assert Place("np", "us-west4-a").nodes(1) == ["np"]
    with pytest.raises(UserError, match="take at most 60 letters"):
        place("a" * 61, "us-west4-a", slices=11)
    assert place("a" * 60, "us-west4-a", slices=11)
