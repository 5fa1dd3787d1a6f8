# Mounts the product's root for writing.  A disk that was not cleanly unmounted has its journal
# replayed by the mount.
. "$JOB/lib.sh"

mount_sysroot rw
[ -d "$SYSROOT/ostree/repo" ] || fail "the root file system holds no OSTree sysroot"
# For the pull, which takes nothing older than what is deployed.
deployments >"$JOB/state/deployments"
