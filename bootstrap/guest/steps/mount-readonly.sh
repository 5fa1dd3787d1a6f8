# Mounts the product's root without writing to it, not even to replay its journal.
. "$JOB/lib.sh"

mount_sysroot ro,noload
[ -d "$SYSROOT/ostree/repo" ] || fail "the root file system holds no OSTree sysroot"
