# needs: fstrim e2fsck
# Gives free blocks back to the image, unmounts, and checks what was written.
. "$JOB/lib.sh"

root=$(partition root)
fstrim "$SYSROOT"
unmount_all
if grep -q " $SYSROOT" /proc/mounts; then fail "the root file system cannot be unmounted"; fi
e2fsck -f -n "$root" || fail "the root file system has faults after the work on it"
blockdev --flushbufs "$(disk_with composer-target)"
sync
