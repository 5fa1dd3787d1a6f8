# needs: mkfs.vfat
# Makes the EFI system partition.
. "$JOB/lib.sh"

mkfs.vfat -F 32 -n ESP "$(partition esp)"
