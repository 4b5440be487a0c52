"""What a run read, by its content: who reads a result can tell whether it is of the same things."""

from __future__ import annotations

from typing import Any

from mergetomix.records import Finetune
from mergetomix.session.inputs import expert_files
from mergetomix.session.session import Session


def signatures(session: Session, finetunes: list[Finetune]) -> dict[str, Any]:
    """Returns the content of the base, the datasets, the targets, and some fine-tunes.

    Of files it is the SHA-256 of each, by name; of a base on a hub its commit; of datasets and
    targets the address of what is trained and scored on.
    """
    inputs, base = session.inputs, session.recipe.base
    files = inputs.family.files()
    commit = getattr(inputs.family.config, "_commit_hash", None)
    kept = {
        "+".join(each.mixture.members): _sums(session, each)
        for each in sorted(finetunes, key=lambda each: each.mixture.members)
    }
    return {
        "base": {
            "path": base.path,
            "address": session.addresses.base,
            "commit": commit,
            "files": {path.name: session.store.file_hash(path) for path in files},
        },
        "datasets": {name: inputs.content(name) for name in sorted(inputs.candidates)},
        "targets": {
            name: {part: inputs.targets(part)[name].address for part in ("select", "report")}
            for name in sorted(session.recipe.targets)
        },
        "finetunes": kept,
    }


def _sums(session: Session, finetune: Finetune) -> dict[str, str]:
    """The SHA-256 of each file of a fine-tune, in the store or where the recipe gives it."""
    if known := session.store.sums(finetune.key):
        return known
    return {path.name: session.store.file_hash(path) for path in expert_files(finetune.path)}
