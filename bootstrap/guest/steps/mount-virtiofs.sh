# Mounts the folder that the host shares over virtiofs.
. "$JOB/lib.sh"

mkdir -p "$EXPORT"
modprobe virtiofs || fail "the helper's kernel has no virtiofs"
mount -t virtiofs -o ro composer-repo "$EXPORT" || fail "the folder shared over virtiofs cannot be mounted"
