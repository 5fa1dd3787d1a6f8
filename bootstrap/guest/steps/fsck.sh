# needs: ostree e2fsck
# Checks every object of the product's repo against its checksum, metadata included, and then the file system.
. "$JOB/lib.sh"

ostree --repo="$SYSROOT/ostree/repo" fsck || fail "ostree fsck found faults in the product's repo"
root=$(partition root)
unmount_all
# A disk that was not cleanly unmounted has its journal replayed first, as by a mount; an overlay takes that.
e2fsck -p -E journal_only "$root" || [ $? = 1 ] || fail "the root file system's journal cannot be replayed"
e2fsck -f -n "$root" || fail "the root file system has faults"
result fsck clean
