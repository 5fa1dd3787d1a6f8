# needs: mkfs.ext4
# Makes the root file system.  Inode tables and journal are written out now (as zeros, which the image
# does not keep): left to the kernel they would be written in the product, at its first boot.
. "$JOB/lib.sh"

set --
if has uuid-root; then set -- -U "$(param uuid-root)"; fi
mkfs.ext4 -q -F -L root "$@" -m 1 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$(partition root)"
