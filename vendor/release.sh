#!/bin/sh
# Builds the wheel and the sdist of the version in pyproject.toml into dist/, tries the wheel in an
# environment of its own, fills the Homebrew formula in, and says which commands publish them. It
# pushes nothing.
# $1: a Python.
set -eu
python=$1
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
fail() { echo "release: $1" >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || fail "there are changes that are not committed"
grep -q "^## $version\b" CHANGELOG.md ||
    fail "CHANGELOG.md has no heading '## $version': rename 'Unreleased', with the date"
git rev-parse -q --verify "refs/tags/v$version" > /dev/null && fail "the tag v$version exists: raise the version"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install -q 'hatchling>=1.27' 'twine>=6'
rm -rf dist
"$work/build/bin/python" -m hatchling build -d dist
"$work/build/bin/python" -m twine check --strict dist/*.whl dist/*.tar.gz
"$python" -m venv "$work/try"
"$work/try/bin/python" -m pip install -q -c constraints.txt dist/*.whl
printed=$("$work/try/bin/decant" --version)
[ "$printed" = "decant, version $version" ] || fail "the wheel says '$printed'"
case $(echo dist/*.whl) in
    dist/decant_llm-"$version"-py3-none-any.whl) ;;
    *) fail "there is not one pure wheel of $version in dist/: $(echo dist/*.whl)" ;;
esac
"$python" -m vendor.formula "dist/decant_llm-$version.tar.gz" > dist/decant.rb

cat << END
dist/ holds decant $version. To publish it, once .ci/run is green on this commit:

  git tag -a v$version -m "decant $version"
  git push origin v$version
  $python -m pip install twine && $python -m twine upload dist/*.whl dist/*.tar.gz

Attach the sdist to the forge's release v$version, where dist/decant.rb, the Homebrew formula, looks
for it; the formula then goes into the folder Formula of a tap.
END
grep -q '^\[project.urls\]' pyproject.toml || cat << END

Before the first release, name the project's addresses in pyproject.toml, for its page on the index:
[project.urls] with Source, Issues and Changelog.
END
