# Mounts the folder that the host shares over 9p.
. "$JOB/lib.sh"

mkdir -p "$EXPORT"
modprobe 9pnet_virtio || fail "the helper's kernel has no 9p over virtio"
modprobe 9p || fail "the helper's kernel has no 9p"
# Nobody changes the folder while it is mounted, so all of it may be cached.  msize as QEMU advises: large
# reads, fewer trips (https://wiki.qemu.org/Documentation/9psetup#msize).
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose composer-repo "$EXPORT" \
    || fail "the folder shared over 9p cannot be mounted"
