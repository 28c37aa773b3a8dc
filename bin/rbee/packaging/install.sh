#!/bin/sh
# Installs rbee on this machine, or takes it away. Needs no network: it copies the program that was built here
# (cargo build --release -p rbee), the units, and settings where there are none yet.
set -eu

usage() {
    cat <<'END'
Usage: install.sh [OPTION]...

  --program FILE   the rbee program [default: the one that was built in this tree]
  --worker FILE    another worker for the hive, for example one that was built for CUDA
  --prefix DIR     where programs and units go [default: /usr/local]
  --destdir DIR    put everything under this folder and touch nothing else; for packages and trials
  --uninstall      take away what was installed, but neither settings nor data
  --help           this text

Settings are in /etc/rbee and are never overwritten.
END
}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
program=
worker=
prefix=/usr/local
destdir=
action=install

while [ $# -gt 0 ]; do
    case $1 in
    --program | --worker | --prefix | --destdir)
        [ $# -ge 2 ] || fail "$1 needs a value; see --help" 2
        case $1 in
        --program) program=$2 ;;
        --worker) worker=$2 ;;
        --prefix) prefix=${2%/} ;;
        --destdir) destdir=${2%/} ;;
        esac
        shift 2
        ;;
    --uninstall)
        action=uninstall
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) fail "unknown option $1; see --help" 2 ;;
    esac
done
case $prefix in
/*) ;;
*) fail "--prefix $prefix: give the whole path, for example /usr/local" 2 ;;
esac

# Units are found in these three prefixes only.
case $prefix in
/usr | /usr/local) lib=$prefix/lib ;;
*) lib=/etc ;;
esac
bin=$prefix/bin/rbee
worker_home=$prefix/lib/rbee/llm-worker-rbee
units=$lib/systemd/system
share=$prefix/share

# Only without --destdir is this machine itself meant.
is_live() { [ -z "$destdir" ]; }
has_systemd() { is_live && [ -d /run/systemd/system ]; }

installed_files() {
    cat <<END
$bin
$worker_home
$units/rbee-queen.service
$units/rbee-hive.service
$units/rbee-worker@.service
$lib/sysusers.d/rbee.conf
$lib/tmpfiles.d/rbee.conf
$share/bash-completion/completions/rbee
$share/zsh/site-functions/_rbee
$share/fish/vendor_completions.d/rbee.fish
END
}

# put MODE FILE TO
put() {
    mkdir -p "$destdir$(dirname "$3")"
    # Beside the old file first: a program that runs is replaced, not written into.
    cp "$2" "$destdir$3.new"
    chmod "$1" "$destdir$3.new"
    mv -f "$destdir$3.new" "$destdir$3"
}

# put_adapted MODE FILE TO: with the paths of this installation
put_adapted() {
    adapted=$(mktemp)
    sed -e "s|/usr/bin/rbee|$bin|g" -e "s|/usr/lib/rbee/llm-worker-rbee|$worker_home|g" "$2" >"$adapted"
    put "$1" "$adapted" "$3"
    rm -f "$adapted"
}

find_program() {
    [ -n "$program" ] || program=${CARGO_TARGET_DIR:-$here/../../../target}/release/rbee
    [ -x "$program" ] || fail "there is no program at $program: build it (cargo build --release -p rbee), or name it by --program"
    [ -z "$worker" ] || [ -x "$worker" ] || fail "there is no program at $worker"
}

install_settings() {
    for name in queen.toml hive.toml queen.env hive.env; do
        to=/etc/rbee/$name
        if [ -e "$destdir$to" ]; then
            echo "kept $to"
            continue
        fi
        case $name in
        *.env) mode=0640 ;;
        *) mode=0644 ;;
        esac
        put_adapted "$mode" "$here/settings/$name" "$to"
        if [ "$name" = hive.toml ] && [ -n "$worker" ]; then
            sed -i "s|^worker_command = .*|worker_command = [\"$worker_home\"]|" "$destdir$to"
        fi
    done
}

# What the program itself knows how to write. One that cannot run here, such as a cross-built one, goes without.
install_words() {
    words=$(mktemp -d)
    if "$program" completions bash >"$words/bash" 2>/dev/null; then
        "$program" completions zsh >"$words/zsh"
        "$program" completions fish >"$words/fish"
        put 0644 "$words/bash" "$share/bash-completion/completions/rbee"
        put 0644 "$words/zsh" "$share/zsh/site-functions/_rbee"
        put 0644 "$words/fish" "$share/fish/vendor_completions.d/rbee.fish"
        "$program" man "$words/man" >/dev/null
        for page in "$words"/man/*.1; do
            put 0644 "$page" "$share/man/man1/$(basename "$page")"
        done
    else
        echo "no completions and manual pages: $program does not run here"
    fi
    rm -rf "$words"
}

do_install() {
    find_program
    is_live && [ "$(id -u)" -ne 0 ] && fail "run it as root (sudo), or with --destdir"
    put 0755 "$program" "$bin"
    [ -z "$worker" ] || put 0755 "$worker" "$worker_home"
    for unit in "$here"/systemd/*.service; do
        put_adapted 0644 "$unit" "$units/$(basename "$unit")"
    done
    put 0644 "$here/sysusers.d/rbee.conf" "$lib/sysusers.d/rbee.conf"
    put 0644 "$here/tmpfiles.d/rbee.conf" "$lib/tmpfiles.d/rbee.conf"
    install_settings
    install_words
    if is_live && command -v systemd-sysusers >/dev/null; then
        systemd-sysusers rbee.conf
        systemd-tmpfiles --create rbee.conf
    fi
    if has_systemd; then
        systemctl daemon-reload
        systemctl try-restart rbee-queen.service rbee-hive.service
    fi
    next_steps
}

next_steps() {
    cat <<END
Installed $destdir$bin.

On one machine:
  systemctl enable --now rbee-queen rbee-hive
  rbee run smollm2-135m-instruct "Why is the sky blue?"

On several, the queen on one of them:
  /etc/rbee/queen.env    RBEE_TOKEN=... and RBEE_API_KEYS=... (openssl rand -hex 16 makes one)
  /etc/rbee/queen.toml   host = "0.0.0.0"
  systemctl enable --now rbee-queen
and a hive on each GPU host:
  /etc/rbee/hive.env     the same RBEE_TOKEN
  /etc/rbee/hive.toml    host = "0.0.0.0", queen_url = ["http://QUEEN-HOST:7833"]
  systemctl enable --now rbee-hive
END
    [ "$prefix" = /usr ] || [ "$prefix" = /usr/local ] || echo "Put $prefix/bin on your PATH."
}

do_uninstall() {
    is_live && [ "$(id -u)" -ne 0 ] && fail "run it as root (sudo), or with --destdir"
    if has_systemd; then
        # The hive leaves its workers running when it is stopped; here they must end, too.
        mkdir -p /run/systemd/system/rbee-hive.service.d
        printf '[Service]\nKillMode=control-group\n' >/run/systemd/system/rbee-hive.service.d/removal.conf
        systemctl daemon-reload
        systemctl disable --now rbee-hive.service rbee-queen.service 2>/dev/null || :
        systemctl stop 'rbee-worker@*.service' 2>/dev/null || :
        # Those of a hive that was stopped before.
        systemctl kill rbee-hive.service 2>/dev/null || :
        rm -r /run/systemd/system/rbee-hive.service.d
    fi
    installed_files | while IFS= read -r file; do
        rm -f "$destdir$file"
    done
    rm -f "$destdir$share/man/man1/rbee.1" "$destdir$share/man/man1"/rbee-*.1
    rm -f "$destdir"/etc/systemd/system/*.wants/rbee-worker@*.service
    rmdir "$destdir$prefix/lib/rbee" 2>/dev/null || :
    has_systemd && systemctl daemon-reload
    cat <<'END'
Removed. Settings and data are still there; to remove these, too:
  rm -r /etc/rbee /var/lib/rbee /var/cache/rbee && userdel rbee
END
}

"do_$action"
