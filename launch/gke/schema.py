"""A manifest against JobSet's own schema, as the package ``kubeflow-trainer-api`` has it.

Its models drop what they do not know, and some put in what they miss: a manifest is right that
comes back as it was.
"""

from collections.abc import Iterator

from configs.errors import UserError

INSTALL = "pip install -c requirements.lock -e '.[gke]'"


def check(manifest: dict[str, object]) -> None:
    """Checks a JobSet.

    Raises:
      UserError: it is none, or the schema is not installed.
    """
    try:
        from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
    except ImportError as error:
        raise UserError(
            f"kubeflow-trainer-api, which has JobSet's schema, is not installed; run: {INSTALL}"
        ) from error
    try:
        read = JobsetV1alpha2JobSet.from_dict(manifest)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(
            f"the manifest is no JobSet ({' '.join(lines)[:300]}); change the flag that is meant."
        ) from error
    assert read is not None
    wrong = [*_differing(manifest, read.to_dict(), "")]
    if wrong:
        raise UserError(
            f"the manifest and JobSet's schema differ in {', '.join(wrong)}; install another "
            f"version of the schema: {INSTALL}"
        )


def _differing(given: object, read: object, path: str) -> Iterator[str]:
    """Yields the paths of what did not come back, or came though it was not given."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name in [*given, *(name for name in read if name not in given)]:
            if name in given and name in read:
                yield from _differing(given[name], read[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}".lstrip(".")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _differing(one, other, f"{path}[{index}]")
    elif given != read:
        yield path.lstrip(".")
