# needs: ostree
# Pulls the commit from the host's repo into the product's.  fsync per object is left out: the whole
# file system is synced once, at the end, and until then the disk is nobody's.
. "$JOB/lib.sh"

repo="$SYSROOT/ostree/repo"
ref=$(param ref)
commit=$(param commit)
url=$(param export-url)
if has remote-name; then
    ostree --repo="$repo" pull --disable-fsync --url="$url" "$(param remote-name)" "$ref@$commit"
else
    # No remote is wanted in the product: one for this pull alone, and a local ref in its place.
    ostree --repo="$repo" remote add --if-not-exists --no-gpg-verify composer-export "$url"
    ostree --repo="$repo" pull --disable-fsync composer-export "$ref@$commit"
    ostree --repo="$repo" refs --force --create="$ref" "$commit"
    ostree --repo="$repo" remote delete composer-export
fi
