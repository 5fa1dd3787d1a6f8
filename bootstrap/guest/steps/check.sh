# needs: ostree
# Holds the default deployment against what it takes to boot it: a kernel and an initramfs that its boot entry
# names, its tree, its origin.
. "$JOB/lib.sh"

folder=$(deployment_folder)
for part in "$folder/usr/bin" "$folder/usr/etc" "$folder/etc" "$folder.origin"; do
    [ -e "$part" ] || fail "the default deployment is not complete: ${part#"$folder"} is missing"
done

chosen=$(boot_entry "$(deployments | wc -l)")
[ -n "$chosen" ] || fail "the default deployment has no boot entry"

kernel=
initramfs=
target=
while read -r key value; do
    case "$key" in
        "linux") kernel=$value ;;
        "initrd") initramfs=$value ;;
        "options") target=${value##*ostree=} ;;
    esac
done <"$chosen"
for file in "$kernel" "$initramfs"; do
    if [ -z "$file" ] || [ ! -s "$SYSROOT/boot/${file#/boot}" ]; then
        fail "its boot entry lacks a file: ${file:-none is named}"
    fi
done
# The links on the way are relative, so they lead to the sysroot as it is mounted here.
[ -n "$target" ] || fail "its boot entry names no deployment"
led=$(cd "$SYSROOT${target%% *}" && pwd -P) || fail "its boot entry leads nowhere: $target"
[ "$led" = "$(cd "$folder" && pwd -P)" ] || fail "its boot entry leads elsewhere: $led"
