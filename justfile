# The commands of a working day. `just` lists them.

default:
    @just --list

# Everything CI runs, in its own virtual environment
ci:
    .ci/run

# The README's test command
test *args:
    python -m pytest {{args}}

lint:
    ruff check .
    ruff format --check .
    lint-imports

format:
    ruff check --fix .
    ruff format .

types:
    mypy

docs:
    mkdocs build --strict

coverage:
    coverage run -m pytest
    coverage combine
    coverage report
