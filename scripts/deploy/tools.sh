# For the parts of scripts/check-deploy to source: how a tool is found, installed or skipped.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tools=$PWD/target/tools

# Says that a check is left out; with CI=true it must not be.
missing() {
    if [ "${CI:-}" = true ]; then
        echo "error: $1 is missing, and CI must not skip it" >&2
        exit 1
    fi
    echo "skipped: $1"
}

# Installs a Debian package where that is possible; whether it worked is for the caller to see.
install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        {
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1"
        } >/dev/null 2>&1 || true
    fi
}

# debian COMMAND PACKAGE: whether the command is there, after an attempt to install it.
debian() {
    command -v "$1" >/dev/null || install "$2"
    command -v "$1" >/dev/null
}

# python_tool FILE PACKAGE: whether the file is in the tools' environment, after an attempt to
# install the package there. FILE is relative to it and may be a pattern.
python_tool() {
    compgen -G "$tools/$1" >/dev/null && return
    if ! [ -x "$tools/bin/pip" ]; then
        # Debian's python3 comes without venv.
        python3 -m venv "$tools" >/dev/null 2>&1 || install python3-venv
        [ -x "$tools/bin/pip" ] || python3 -m venv --clear "$tools" >/dev/null 2>&1 || return 1
    fi
    "$tools/bin/pip" install --quiet --disable-pip-version-check "$2" >/dev/null 2>&1 || return 1
    compgen -G "$tools/$1" >/dev/null
}
