# needs: ostree
# Pulls the commit into the product's repo.  fsync per object is left out: the whole file system is synced
# once, at the end, and until then the disk is nobody's.
. "$JOB/lib.sh"

repo="$SYSROOT/ostree/repo"
ref=$(param ref)
commit=$(param commit)
# What comes from a disk or a shared folder is verified as what comes over HTTP always is.
set -- --disable-fsync --untrusted --url="$(param export-url)"
deployed=$(deployments | head -n 1 | cut -d' ' -f2)
if [ -n "$deployed" ] && ! has allow-downgrade; then
    set -- "$@" --timestamp-check-from-rev="$deployed"
fi

if has remote-name; then
    remote=$(param remote-name)
    # ed25519 signatures were checked on the host.  The key file's path is the booted product's, and many an
    # ostree is built without ed25519 and then pulls nothing from a remote that asks for it.
    group="remote \"$remote\""
    sign=$(ostree --repo="$repo" config get --group="$group" sign-verify 2>/dev/null || true)
    if [ -n "$sign" ]; then ostree --repo="$repo" config set --group="$group" sign-verify false; fi
    ostree --repo="$repo" pull "$@" "$remote" "$ref@$commit"
    if [ -n "$sign" ]; then ostree --repo="$repo" config set --group="$group" sign-verify "$sign"; fi
else
    # No remote is wanted in the product: one for this pull alone, and a local ref in its place.
    ostree --repo="$repo" remote add --if-not-exists --no-gpg-verify composer-export file:///
    ostree --repo="$repo" pull "$@" composer-export "$ref@$commit"
    ostree --repo="$repo" refs --force --create="$ref" "$commit"
    ostree --repo="$repo" remote delete composer-export
fi
