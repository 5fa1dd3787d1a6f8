"""What a new disk in the place of another one would lose for good."""

from __future__ import annotations

from pathlib import Path

from composer.disk.manifest import Manifest
from composer.plan import Plan


def lost_by_build(disk: Path, present: Manifest | None, plan: Plan) -> tuple[str, ...]:
    """Return what is lost where the disk of ``plan`` takes the place of ``disk``; () for a mere rebuild.

    ``present`` is what its manifest says, None where it has none.  Older commits of the plan's own ref are
    no loss, for they came from its repo.
    """
    if present is None:
        return ("whatever is in it: it has no manifest that can be read",)
    lost = []
    if present.written is not None:
        lost.append(
            f"what was written to it since it was built (noticed {present.written}): /var, /etc, /home"
        )
    elif not present.fits(disk):
        lost.append("what was written to it since the composer's last job: /var, /etc, /home")
    if present.name != plan.name:
        lost.append(f"the product {present.name}; the recipe makes {plan.name}")
    for deployment in present.deployments:
        # Without a refspec it has no ref of its own.
        ref = (deployment.refspec or plan.source.ref).rpartition(":")[2]
        if deployment.stateroot != plan.source.stateroot:
            lost.append(f"the deployment {deployment.commit[:12]} of the stateroot {deployment.stateroot}")
        elif ref != plan.source.ref:
            lost.append(f"the deployment {deployment.commit[:12]} of the ref {ref}")
    return tuple(lost)
