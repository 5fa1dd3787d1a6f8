# Holds the default deployment against what it takes to boot it: a kernel and an initramfs that its boot entry
# names, its tree, its origin.
. "$JOB/lib.sh"

folder=$(deployment_folder)
[ -n "$folder" ] || fail "no boot entry names a deployment"
for part in "$folder/usr/bin" "$folder/usr/etc" "$folder/etc" "$folder.origin"; do
    [ -e "$part" ] || fail "the default deployment is not complete: ${part#"$folder"} is missing"
done

read_entry "$(boot_entry 1)"
for file in "${kernel?}" "${initramfs?}"; do
    if [ -z "$file" ] || [ ! -s "$SYSROOT/boot/${file#/boot}" ]; then
        fail "its boot entry lacks a file: ${file:-none is named}"
    fi
done
