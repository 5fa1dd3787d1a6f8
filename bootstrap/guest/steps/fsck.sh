# needs: ostree
# Checks every object of the product's repo against its checksum, metadata included.
. "$JOB/lib.sh"

ostree --repo="$SYSROOT/ostree/repo" fsck || fail "ostree fsck found faults in the product's repo"
result fsck clean
