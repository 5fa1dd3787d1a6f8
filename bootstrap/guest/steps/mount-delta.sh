# Mounts the delta disk: a repo of just what the product lacks.
. "$JOB/lib.sh"

mkdir -p "$EXPORT"
mount -t ext4 -o ro,noload "$(disk_with composer-delta)" "$EXPORT" || fail "the delta disk cannot be mounted"
