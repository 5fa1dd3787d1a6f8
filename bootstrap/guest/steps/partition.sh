# needs: sfdisk
# Writes the partition table that the host laid out.
. "$JOB/lib.sh"

disk=$(disk_with composer-target)
sfdisk --quiet --wipe always --wipe-partitions always "$disk" <"$JOB/data/layout"
partition root >/dev/null
