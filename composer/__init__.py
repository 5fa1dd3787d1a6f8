"""ostree-composer: makes and updates bootable OSTree disks inside a helper VM.

The way of the data, and so the order in which to read: `recipe`, `repo`, `plan`, `compose`, `helper`,
`export`, `disk`.  `cli` stands on top, `store`, `process`, `events` and `errors` below.
"""

__version__ = "0.1.0"
