#!/bin/sh
# Let packets pass again that drop.sh drops. See usage() below and docs/operations.md.
set -uf

usage() {
    cat <<'END'
Usage: restore.sh [HOST | --drills]

Removes the rules that drop.sh has put there for HOST, or for all hosts. HOST is what drop.sh was
given; it is not looked up, so this works without name service too.

  --drills  remove the rules of `linkd drill` instead: it takes them back itself within 123 s, unless
            its processes were killed one by one. A drill that is under way is spoiled by this.

Exit: 0 restored or nothing to restore, 1 failed, 2 wrong usage.
END
}

fail() {
    printf 'restore.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

mark=linkd-drop
case ${1-} in
-h | --help) usage; exit 0 ;;
--drills)
    mark=linkd-drill
    shift
    [ $# = 0 ] || fail "--drills takes no HOST, got $1 (try restore.sh --help)" 2
    ;;
-*) fail "unknown option $1 (try restore.sh --help)" 2 ;;
esac
[ $# -le 1 ] || fail "one HOST or none, got $# (try restore.sh --help)" 2
host=$(printf '%s' "${1-}" | tr '[:upper:]' '[:lower:]')
PATH=$PATH:/usr/sbin:/sbin
newline='
'

# Print the programs that may hold rules of $1, iptables or ip6tables: first the one that the host
# uses, then the other kind (-nft, -legacy). The choice may have changed while rules were in force.
# Listing legacy tables makes them, so they are left alone where the kernel has none.
programs() {
    case $("$1" --version 2>/dev/null) in
    *legacy*) other=$1-nft ;;
    *) other=$1-legacy ;;
    esac
    echo "$1"
    case $other in
    iptables-legacy) grep -qs . /proc/net/ip_tables_names || return 0 ;;
    ip6tables-legacy) grep -qs . /proc/net/ip6_tables_names || return 0 ;;
    esac
    if ! command -v "$other" >/dev/null; then
        case $other in
        *-legacy) echo "restore.sh: this host has rules of $other, but no such program: they were not looked at" >&2 ;;
        esac
    elif "$other" -w 5 -S INPUT >/dev/null 2>&1; then
        echo "$other"
    fi
}

# Print "CHAIN MATCH... --comment $2:..." for every rule in $1 that is marked by $2.
present() {
    "$1" -w 5 -S 2>/dev/null | tr -d '"' | awk -v mark=" --comment $2:" '
        $1 == "-A" && index($0, mark) { sub(/^-A /, ""); print }'
}

# Print the HOST of the rule $1 (an IPv6 address has colons of its own: the token is behind the
# last), or all of a drill's mark.
host_of() {
    name=${1#*--comment }
    name=${name%% *}
    case $name in
    linkd-drop:*)
        name=${name#linkd-drop:}
        name=${name%:*}
        ;;
    esac
    printf '%s\n' "$name"
}

# Print the chains of $1 in which rules of others precede one that is to be removed: these may have let
# packets pass. drop.sh puts its own first, so somebody has put those there later.
overruled() {
    "$1" -w 5 -S 2>/dev/null | tr -d '"' | awk -v mark=" --comment $mark:${host:+$host:}" '
        $1 != "-A" { next }
        index($0, mark) { if (others[$2] && !said[$2]++) print $2; next }
        !/ --comment linkd-dr(op|ill):/ { others[$2] = 1 }'
}

# Remove the rules that $1 lists and that are wanted.
remove_from() {
    above="$above$(overruled "$1")$newline"
    [ "$mark" = linkd-drill ] || [ -z "$(present "$1" linkd-drill)" ] || drills=yes
    IFS=$newline
    for rule in $(present "$1" "$mark"); do
        unset IFS
        name=$(host_of "$rule")
        if [ -n "$host" ] && [ "$name" != "$host" ]; then
            others="$others$name$newline"
            continue
        fi
        # shellcheck disable=SC2086  # a rule is several words
        said=$("$1" -w 5 -D $rule 2>&1) || {
            # A timer, or the drill itself, may have been faster: only what is still there is an error.
            present "$1" "$mark" | grep -qxF -- "$rule" && fail "$1 cannot remove '$rule': $said"
        }
        removed="$removed$name$newline"
    done
    unset IFS
}

seen='' removed='' others='' drills='' above=''
for tool in iptables ip6tables; do
    command -v "$tool" >/dev/null || continue
    seen=yes
    said=$("$tool" -w 5 -S INPUT 2>&1 >/dev/null) || {
        # A kernel without IPv6 has no rules there either.
        [ "$tool" = ip6tables ] && ! [ -e /proc/net/if_inet6 ] && continue
        fail "$tool refuses: ${said:-no reason given}; it needs root (try sudo)"
    }
    for program in $(programs "$tool"); do
        remove_from "$program"
    done
done
[ -n "$seen" ] || fail "iptables is missing (Debian: apt install iptables)"

list() { printf '%s' "$1" | sed '/^$/d' | sort -u | tr '\n' ' ' | sed 's/ $//'; }

if [ -n "$removed" ]; then
    printf 'Restored: %s.\n' "$(list "$removed")"
    [ -z "$(list "$above")" ] ||
        printf 'Other rules had been put above these since (%s): packets may have passed meanwhile.\n' "$(list "$above")"
elif [ "$mark" = linkd-drill ]; then
    printf 'No drill has left rules here.\n'
elif [ -n "$others" ]; then
    printf 'Nothing is dropped for %s; dropped are: %s.\n' "$host" "$(list "$others")"
else
    printf 'Nothing is dropped%s.\n' "${host:+ for $host}"
fi
if [ -n "$drills" ]; then
    printf 'Rules of linkd drill are in force: they go by themselves within 123 s; restore.sh --drills removes them now.\n'
fi
