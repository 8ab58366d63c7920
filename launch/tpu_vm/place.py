"""Where a TPU VM is and what it is called: names that Google Cloud takes, and no others."""

import dataclasses
import re

from configs.errors import UserError

LONGEST = 63  # letters of a name


@dataclasses.dataclass(frozen=True)
class Place:
    """The name of a queued resource, its zone and its project."""

    name: str
    zone: str
    project: str = ""  # "" leaves it to gcloud's settings

    def words(self) -> list[str]:
        """Returns the flags that tell gcloud zone and project."""
        return where(self.zone, self.project)

    def nodes(self, slices: int) -> list[str]:
        """Returns the names of its TPU VMs, one for each slice.

        Several are numbered from 0 after a hyphen, by the reference of ``MultisliceParams``.
        """
        if slices == 1:
            return [self.name]
        return [f"{self.name}-{number}" for number in range(slices)]


def where(zone: str, project: str = "") -> list[str]:
    """Returns the flags that tell gcloud a zone and a project."""
    return [f"--zone={zone}", *([f"--project={project}"] if project else [])]


def place(name: str, zone: str, project: str = "", slices: int = 1) -> Place:
    """Returns the place that the flags describe.

    Raises:
      UserError: a name is missing, or none that Google Cloud takes.
    """
    check_name(name)
    check_zone(zone)
    if project:
        check_project(project)
    found = Place(name, zone, project)
    longest = max(found.nodes(slices), key=len)
    if len(longest) > LONGEST:
        raise UserError(
            f"--name={name} is too long for {slices} slices, the last of which would be {longest}; "
            f"take at most {LONGEST - len(longest) + len(name)} letters."
        )
    return found


def check_name(name: str) -> None:
    """Checks a name against Google Cloud's rule.

    Raises:
      UserError: it is missing or against the rule.
    """
    if not name:
        raise UserError("--name is missing; choose one, for example --name=heads.")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise UserError(
            f"--name={shown(name)} is no Google Cloud name; take at most {LONGEST} lower-case "
            "letters, digits and hyphens, a letter first and no hyphen last."
        )


def check_zone(zone: str) -> None:
    """Checks the form of a zone.

    Raises:
      UserError: it is missing or a region.
    """
    if not zone:
        raise UserError("--zone is missing; name one, for example --zone=us-west4-a.")
    if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z]", zone):
        raise UserError(f"--zone={shown(zone)} is no zone; zones look like us-west4-a.")


def check_project(project: str) -> None:
    """Checks a project against Google Cloud's rule: an id, after a domain for some, or a number.

    Raises:
      UserError: it is against the rule.
    """
    if not re.fullmatch(r"([a-z0-9][a-z0-9.-]*:)?[a-z][-a-z0-9]{4,28}[a-z0-9]|[0-9]+", project):
        raise UserError(
            f"--project={shown(project)} is no project id; take 6 to 30 lower-case letters, digits "
            "and hyphens, a letter first and no hyphen last."
        )


def shown(text: str) -> str:
    """Returns what was given as one line."""
    return text if text.isprintable() else repr(text)
