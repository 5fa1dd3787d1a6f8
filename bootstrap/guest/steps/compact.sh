# needs: ostree
# Removes what no deployment and no ref needs any more; finalise gives its room back to the host.
. "$JOB/lib.sh"

ostree admin cleanup
ostree --repo="$SYSROOT/ostree/repo" prune --refs-only --depth=0
