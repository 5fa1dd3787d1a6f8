# needs: mkfs.vfat
# Makes the EFI system partition.
. "$JOB/lib.sh"

set --
if has uuid-esp; then set -- -i "$(param uuid-esp | tr -d -)"; fi
mkfs.vfat -F 32 -n ESP "$@" "$(partition esp)"
