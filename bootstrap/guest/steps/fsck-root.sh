# needs: e2fsck
# Unmounts the product's root and checks its file system.
. "$JOB/lib.sh"

root=$(partition root)
unmount_all
# A disk that was not cleanly unmounted has its journal replayed first, as by a mount; an overlay takes that.
e2fsck -p -E journal_only "$root" || [ $? = 1 ] || fail "the root file system's journal cannot be replayed"
e2fsck -f -n "$root" || fail "the root file system has faults"
