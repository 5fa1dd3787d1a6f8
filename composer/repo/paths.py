"""The paths that an archive repo has, as ostree-repo.c and ostree-repo-pull.c of libostree name them."""

from __future__ import annotations

import re

_SAFE = r"[A-Za-z0-9_][-._A-Za-z0-9]*"
_PATHS = re.compile(
    r"(?:"
    r"objects/[0-9a-f]{2}/[0-9a-f]{62}\.(?:filez|dirtree|dirmeta|commit|commitmeta|payload-link)"
    rf"|refs/(?:heads|mirrors|remotes)/{_SAFE}(?:/{_SAFE})*"
    r"|summary(?:\.sig)?|summaries/[0-9a-f]{64}(?:-[0-9a-f]{64})?\.(?:gz|delta|sig)"
    r"|deltas/[0-9A-Za-z_+]{2}/[-0-9A-Za-z_+]{1,128}/(?:superblock|[0-9]{1,6})"
    r"|delta-indexes/[0-9A-Za-z_+]{2}/[0-9A-Za-z_+]{1,64}\.index"
    r")"
)
# Files of a product, and parts of deltas, which hold several.
_CONTENT = re.compile(r"objects/.*\.filez|deltas/.*/[0-9]+")
_LARGEST_CONTENT = 16 * 2**30
# OSTREE_MAX_METADATA_SIZE of ostree-core.h.
_LARGEST_METADATA = 128 * 2**20


def is_repo_path(path: str) -> bool:
    """Whether an archive repo can have a file of this path; its config, which has secrets, does not count."""
    return _PATHS.fullmatch(path) is not None


def largest(path: str) -> int:
    """Return how many bytes the file of this path may have."""
    return _LARGEST_CONTENT if _CONTENT.fullmatch(path) else _LARGEST_METADATA
